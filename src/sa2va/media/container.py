"""Video files before decoding: the container's format, safe opening, packets and timestamps."""

from __future__ import annotations

import heapq
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from sa2va.media.frames import check_weight

HEAD_BYTES = 400
"""How much of a file ``container_format`` wants to see."""

# FFmpeg's own VP8 and VP9 decoders ignore the alpha channel that WebM keeps beside the picture.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof"}
_PICTURE_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_MAGIC = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"\x00\x00\x01\xba": "mpeg",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
}
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_DEMUX_RETRIES = 3
MAX_STREAMS = 200
"""FFmpeg looks into every stream before anything is decoded; fonts and subtitles are streams too."""


def container_format(head: bytes) -> str | None:
    """FFmpeg's demuxer for a video file that begins with ``head``; None for anything else.

    FFmpeg is told the demuxer and never guesses, because some that it may guess (playlists) open other files.
    """
    if head[4:8] in _MOV_BOXES:
        return None if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS else "mov"
    if head[:4] == b"RIFF" and head[8:11] == b"AVI":
        return "avi"
    for packet_size, sync in ((188, 0), (192, 4)):
        if len(head) > packet_size + sync and head[sync] == head[packet_size + sync] == 0x47:
            return "mpegts"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


@contextmanager
def open_video(
    path: Path, format: str, max_pixels: int, threads: int = 0
) -> Iterator[tuple[InputContainer, VideoStream, VideoCodecContext]]:
    """Open a local file with one demuxer, and its first video stream with a decoder of its own.

    Args:
        threads: of the decoder; 0 for one per core.

    Raises:
        ValueError: not readable as that format, no video stream that can be decoded, frames above ``max_pixels``, or
            more of them than the file can hold.
    """
    # The decoder counts its padding too. This stops streams that grow after their header was checked.
    limit = {"max_pixels": str(min(2 * max_pixels, 2**31 - 1))}
    options = {"protocol_whitelist": "file", "max_streams": str(MAX_STREAMS), **limit}
    try:
        # "file:" keeps FFmpeg from reading a protocol into the name.
        container = av.open(f"file:{path.absolute()}", format=format, options=options)
    except FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video, it is damaged or cut short: {error.strerror}") from error
    with container:
        stream = _video_stream(container, path)
        decoder = stream.codec_context
        if decoder.width * decoder.height > max_pixels:
            raise ValueError(f"{path} has frames of {decoder.width}x{decoder.height}, above max_pixels={max_pixels}")
        check_weight(path, stream.frames, (decoder.height, decoder.width))
        alpha = _ALPHA_DECODERS.get(decoder.name)
        if stream.metadata.get("alpha_mode") == "1" and alpha in av.codecs_available:
            decoder = VideoCodecContext.create(alpha, "r")
            assert isinstance(decoder, VideoCodecContext)
        decoder.thread_type = "AUTO"
        decoder.thread_count = threads
        decoder.options = limit
        yield container, stream, decoder


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    for stream in container.streams.video:
        # A cover picture is a video stream of one frame in an audio file.
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError(f"{path} is coded in a way this build of FFmpeg cannot decode")
            return stream
    kinds = ", ".join(stream.type for stream in container.streams) or "nothing"
    raise ValueError(f"{path} has no video in it; it holds: {kinds}")


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The stream's packets from the current position, unreadable stretches skipped."""
    for _ in range(_DEMUX_RETRIES):
        try:
            for packet in container.demux(stream):
                if packet.size or packet.dts is not None:
                    yield packet
            return
        except FFmpegError:
            continue


def land(container: InputContainer, stream: VideoStream, pts: int) -> Iterator[Packet]:
    """The packets from the key frame that seeking to ``pts`` arrives at; nothing when seeking fails."""
    try:
        container.seek(pts, stream=stream)
    except FFmpegError:
        return
    landed = False
    for packet in demux(container, stream):
        landed = landed or (packet.is_keyframe and packet.pts is not None)
        if landed:
            yield packet


def shows_frame(packet: Packet) -> bool:
    """Whether a frame should come of a packet: not of an empty, a cut out (edit list) or a merely referred to one."""
    if not packet.size or packet.is_discard:
        return False
    return packet.stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def frames_by_table(container: InputContainer, stream: VideoStream) -> int | None:
    """The number of frames by the sample table of an mp4, those beyond the end of a cut file left out; else None."""
    entries = stream.index_entries
    if not stream.frames or len(entries) != stream.frames or not container.format.name.startswith("mov"):
        return None
    size = container.size
    return sum(entry.size > 0 and entry.pos + entry.size <= size and not entry.is_discard for entry in entries)


def frames_missing(stream: VideoStream, packets: int, end: int) -> int:
    """How many frames the header promises beyond those in the file; 0 where it does not say.

    Args:
        packets: the number of packets in the file.
        end: where the last of them ends, in stream units.
    """
    avi = stream.container.format.name == "avi"
    if stream.frames and not avi:
        return max(0, stream.frames - packets)
    clock = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    if avi:
        # Counted in ticks: the header's number includes the frames left out to bridge a pause.
        promised = stream.frames
    elif clock and stream.time_base:
        promised = (int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])) / stream.time_base
    else:
        return 0
    missing = (promised - end) * packets / max(1, end)
    # Times are rounded and the last frame's duration is often unknown: less than two frames means nothing.
    return round(missing) if missing > 2 else 0


@dataclass(frozen=True)
class PacketIndex:
    """Timestamps of all frames, ascending, and of the key frames that decoding may start at.

    ``sound`` tells whether they identify frames: every packet has one and no two share it.
    """

    pts: array[int]
    keys: array[int]
    sound: bool

    @classmethod
    def scan(cls, container: InputContainer, stream: VideoStream, first_pts: int | None) -> PacketIndex:
        """Read all packets, decoding none. Packets before ``first_pts`` are known to give no frame."""
        pts, keys, unknown = array("q"), array("q"), False
        for packet in demux(container, stream):
            unknown = unknown or packet.pts is None
            value = packet.pts or 0
            if packet.is_keyframe:
                keys.append(value)
            if shows_frame(packet) and (first_pts is None or value >= first_pts):
                pts.append(value)
        ordered = array("q", sorted(pts))
        unique = all(earlier < later for earlier, later in pairwise(ordered))
        return cls(ordered, array("q", sorted(keys)), unique and not unknown)

    def rank(self, pts: int) -> int:
        """The index of the frame at ``pts``."""
        return bisect_left(self.pts, pts)

    def key_for(self, index: int) -> int:
        """Which key frame (position in ``keys``) frame ``index`` is decoded from; -1 when there is none."""
        return bisect_right(self.keys, self.pts[index]) - 1 if index < len(self.pts) else len(self.keys) - 1


@dataclass
class Pending:
    """Packets that went into the decoder and whose frames have not come out, to notice those that never will.

    Attributes:
        members: their timestamps.
        sent: how many packets went in, in all.
        end: where the last of them ends, in stream units.
    """

    members: set[int] = field(default_factory=set)
    sent: int = 0
    end: int = 0
    _heap: list[int] = field(default_factory=list)

    def add(self, packet: Packet, floor: int | None) -> bool:
        """Note a packet; one before ``floor`` owes no frame. False when its timestamp cannot identify a frame."""
        self.sent += 1
        pts = packet.pts
        if not shows_frame(packet):
            return True
        if pts is None or pts in self.members:
            return False
        self.end = max(self.end, pts + (packet.duration or 0))
        if floor is None or pts >= floor:
            heapq.heappush(self._heap, pts)
            self.members.add(pts)
        return True

    def pop_before(self, pts: int) -> list[int]:
        """Take out ``pts`` and everything older; return the older ones, ascending."""
        taken = []
        while self._heap and self._heap[0] <= pts:
            taken.append(heapq.heappop(self._heap))
        self.members.difference_update(taken)
        return [value for value in taken if value != pts]
