"""Trains in a process of its own, for the tests that kill it or start two: python training_run.py CONFIG.json"""

from __future__ import annotations

import os
import sys

import torch
import transformers

from sa2va.train.config import TrainConfig
from sa2va.train.run import prepare, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    train(prepare(TrainConfig.from_file(sys.argv[1])), note=print)
    print("finished", os.getpid())
