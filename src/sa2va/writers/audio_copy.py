"""Copy the audio of a source file into a new video, in sync with its frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sa2va.runtime import logger

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet


# Seconds before the first picture that are kept: decoders need a packet or two to get going, and containers hide them.
_LEAD_IN = 0.05


class AudioCopy:
    """The first audio stream of a file, copied packet by packet as far as the video has come.

    Packets are copied as they are where the container can hold their codec, and re-encoded where it cannot. Sound is an
    extra here: a damaged stream ends the sound with a warning, never the video.
    """

    @classmethod
    def open(cls, source: str | Path, container: OutputContainer, kept: frozenset[str], codec: str) -> AudioCopy | None:
        """None when the source is no media file or has no sound.

        Args:
            container: where to; nothing may have been written to it yet.
            kept: names of the codecs it can hold as they are.
            codec: name of the encoder for all others.
        """
        import av
        from av.error import FFmpegError

        if not Path(source).is_file():
            return None
        try:
            media = av.open(str(source), options={"protocol_whitelist": "file"})
        except (FFmpegError, OSError):
            return None
        if not media.streams.audio:
            media.close()
            return None
        return cls(media, container, kept, codec)

    def __init__(self, media: InputContainer, container: OutputContainer, kept: frozenset[str], codec: str) -> None:
        self._media = media
        self._container = container
        self._input = media.streams.audio[0]
        self._packets = media.demux(self._input)
        self._pending: Packet | None = None
        self._damaged = 0
        self._encode = self._input.codec_context.name not in kept
        if self._encode:
            rate = 48000 if codec == "libopus" else self._input.rate  # Opus knows few rates, and this is its own
            self._output = cast("AudioStream", container.add_stream(codec, rate=rate))
            self._output.layout = "stereo" if self._input.channels > 1 else "mono"
        else:
            self._output = container.add_stream_from_template(self._input)
        video = media.streams.video[0] if media.streams.video else self._input
        self._zero = float((video.start_time or 0) * (video.time_base or 0))

    def copy_until(self, end: float, *, start: float) -> None:
        """Copy what sounds before ``end`` seconds of the new file, whose zero is ``start`` seconds of the source."""
        from av.error import FFmpegError

        try:
            while (packet := self._next()) is not None:
                begin = float(packet.pts * packet.time_base) - self._zero - start
                if begin >= end:
                    return
                self._pending = None
                if begin > -_LEAD_IN:
                    self._send(packet, start)
        except (FFmpegError, OSError) as error:
            logger.warning("the sound of %s ends early: %s", self._media.name, error)
            self._packets = iter(())
            self._pending = None

    def _next(self) -> Any:
        while self._pending is None:
            packet = next(self._packets, None)
            if packet is None:
                return None
            if packet.pts is not None and packet.size:
                self._pending = packet
        return self._pending

    def _send(self, packet: Any, start: float) -> None:
        if self._encode:
            for frame in self._decode(packet):
                frame.pts -= round((self._zero + start) / frame.time_base)
                self._container.mux(self._output.encode(frame))
            return
        shift = round((self._zero + start) / packet.time_base)
        packet.pts -= shift
        packet.dts = packet.pts  # sound is stored in the order it plays
        packet.stream = self._output
        self._container.mux(packet)

    def _decode(self, packet: Any) -> Any:
        from av.error import FFmpegError

        try:
            return packet.decode()
        except FFmpegError:
            self._damaged += 1
            return []

    def finish(self) -> None:
        """Flush the encoder and let go of the source."""
        if self._damaged:
            logger.warning("left out %d damaged packets of the sound of %s", self._damaged, self._media.name)
        if self._encode and self._output.codec_context.is_open:
            self._container.mux(self._output.encode(None))
        self.close()

    def close(self) -> None:
        """Let go of the source."""
        self._media.close()
