"""Plain functions: in the bus's threads with a blocking bus, or in processes for what keeps a core busy."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

from switchgear import Bus, sync

from .depot import Parcel, parcels

bus = Bus()


@bus.subscribe(parcels, group="photos", concurrency=8)  # eight threads
def photograph(parcel: Parcel, bus: sync.Bus) -> None:
    bus.publish("photos", parcel.id)


pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@bus.subscribe(parcels, group="volume", concurrency=2, executor=pool, to="volumes")
def volume(parcel: Parcel) -> dict[str, int]:  # the body alone: no dependency crosses into a process
    return {"pid": os.getpid(), "cells": sum(range(10**5))}
