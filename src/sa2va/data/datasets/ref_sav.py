"""Ref-SAV as training samples: long descriptions of objects in SA-V's videos, whose frames are read by seeking."""

from __future__ import annotations

from pathlib import Path

from sa2va.data.annotations.layout import Problems
from sa2va.data.annotations.sav import read_ref_sav
from sa2va.data.datasets.conversation_sampling import Draws
from sa2va.data.datasets.frame_sampling import SeekedFrames, check_counts, draw_frames
from sa2va.data.sample import Sample
from sa2va.processing.requests import TRAINING_REQUESTS, TrainingRequests
from sa2va.results.history import Turn


class RefSAV:
    """Ref-SAV: ``ROOT/video_datas/{Ref-SAV.json, sam_v_full}``; sample ``i`` shows view ``i // videos`` of a video.

    Frames are drawn anew for every view from those that SA-V annotates (every fourth), and objects are dealt out, so
    that the views of a video show all of them equally often (give or take one). Only the drawn frames are decoded, from
    the key frames before them, and only the masklets of the shown objects.

    Args:
        root: the folder of all data. frames: most of a sample. phrases: most objects of a sample.
        views: samples per video. seed: another seed draws others. requests: the templates of wordings.
        skip_broken: leave out videos of which files are missing, with a warning, instead of refusing.

    Raises:
        MissingData, ValueError: a file is missing or malformed; the message names it.
    """

    name = "ref-sav"

    def __init__(
        self,
        root: str | Path,
        *,
        frames: int = 5,
        phrases: int = 5,
        views: int = 1,
        seed: int = 0,
        requests: TrainingRequests = TRAINING_REQUESTS,
        skip_broken: bool = False,
    ):
        check_counts(frames=frames)
        self.frames, self.draws = frames, Draws(seed, phrases, views, requests)
        folder = Path(root) / "video_datas"
        problems, kept = Problems(str(folder / "Ref-SAV.json")), []
        for video in read_ref_sav(folder / "Ref-SAV.json", folder / "sam_v_full"):
            complete = [problems.present(path, "SA-V, from its authors' page") for path in video.files]
            if all(complete) and video.objects:
                kept.append(video)
        problems.settle(len(kept), skip=skip_broken)
        self.videos = tuple(kept)

    def __len__(self) -> int:
        return len(self.videos) * self.draws.views

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, pictures undecoded. ValueError or OSError when its files are wrong."""
        view = self.draws.view(index, len(self.videos))
        video, wording = self.videos[view.place], self.draws.clip(index)
        clip = video.open()
        shown = draw_frames(clip.frame_count, self.frames, wording.rng)
        objects = self.draws.choose(video.objects, view)
        # Descriptions are several sentences: they go where a request ends.
        templates = self.draws.requests.video_description
        requests = [wording.draw(templates, phrase=one.text.strip().removesuffix(".")) for one in objects]
        return Sample(
            id=f"{self.name}/{video.id}{view.suffix}",
            frames=SeekedFrames(clip.video, clip.in_file(shown)).lazy,
            turns=tuple(Turn(request, wording.answer()) for request in requests),
            masks=tuple(clip.masks(described.id, shown) for described in objects),
            video=True,
            source=self.name,
        )
