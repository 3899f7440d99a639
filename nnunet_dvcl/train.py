"""``torchrun ... -m nnunet_dvcl.train``: ``nnUNetv2_train`` on several GPUs of one or several machines.

nnU-Net's own command starts the processes of one machine. This one is started by torchrun, on each machine, once a GPU.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from torch import distributed as dist
from torch.backends import cudnn
from torch.distributed.elastic.multiprocessing.errors import record

from nnunet_dvcl.distributed import gather_objects
from nnunet_dvcl.endings import message_alone
from nnunet_dvcl.errors import UserError
from nnunet_dvcl.trainers.base import nnUNetTrainerPlugin

# nccl's own 10 minutes are short for machines that preprocess unlabeled scans, each on a disk of its own. A worker that
# dies is noticed by torchrun, at once; this is for a machine that does.
TIMEOUT = timedelta(minutes=30)
# Rank 0 alone computes the metrics and, for a cascade, predicts the unlabeled scans.
PATIENCE = timedelta(days=7)
_MEETING = "nnunet_dvcl: port of rank 0"
T = TypeVar("T")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchrun ... -m nnunet_dvcl.train",
        description="nnUNetv2_train on several GPUs of one or several machines, started by torchrun.",
    )
    parser.add_argument("dataset", help="name or number of the data set")
    parser.add_argument("configuration")
    parser.add_argument("fold", help="0 to 4, or all")
    parser.add_argument("-tr", metavar="TRAINER", required=True, help="one of `nnunet_dvcl trainers`")
    parser.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="plans (default: nnUNetPlans)")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="checkpoint whose network the training starts from")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--npz", action="store_true", help="save the probabilities of the final validation")
    parser.add_argument("--val_best", action="store_true", help="validate with checkpoint_best")
    parser.add_argument("--disable_checkpointing", action="store_true", help="write no checkpoint")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--c", action="store_true", help="go on from the last checkpoint, as after a restart")
    what.add_argument("--val", action="store_true", help="validate only")
    return parser


@record
@message_alone()
def main(argv: Sequence[str] | None = None) -> None:
    """One process of a training.

    Raises:
        UserError: started without torchrun, or with more processes than GPUs; a trainer that is not ours; checkpoints
            of an earlier training without --c; a results folder that the machines do not share; and what the trainer
            raises.
    """
    args = _parser().parse_args(argv)
    store = _join_group(args.device)
    trainer = _make_trainer(args)
    if not args.val:
        trainer.run_training()
    if args.val_best:
        trainer.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_best.pth"))
    trainer.perform_actual_validation(args.npz)
    _end(store)


def _end(store: dist.Store) -> None:
    """None ends before rank 0: its machine may be where torchrun meets. Rank 0 ends last: it holds the store."""
    rank, others = dist.get_rank(), dist.get_world_size() - 1
    if rank == 0:
        store.set("validated", "")
    store.wait(["validated"], PATIENCE)
    dist.barrier()
    dist.destroy_process_group()
    store.add("left", int(rank > 0))
    if rank == 0:
        with suppress(TimeoutError):  # one that died after the barrier changes nothing
            _wait_until(lambda: store.add("left", 0) == others or None, timedelta(minutes=1))


def _join_group(device: str) -> dist.Store:
    """The process group, and the store through which its processes met."""
    missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name not in os.environ]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not set: this is started by torchrun, for example\n"
            "  torchrun --nproc_per_node 2 -m nnunet_dvcl.train 501 3d_fullres 0 -tr nnUNetTrainerDVCL\n"
            "On one GPU use nnUNetv2_train."
        )
    if device == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f"torch sees {gpus} GPUs on this machine: torchrun --nproc_per_node has to be at most that."
            )
        torch.cuda.set_device(local_rank)
        # as nnU-Net's own command
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        cudnn.deterministic, cudnn.benchmark = False, True
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = _meet(rank, world_size)
    else:
        store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    return store


def _meet(rank: int, world_size: int) -> dist.Store:
    """A store of these processes alone, which ends with rank 0.

    That of torchrun outlives a restart, and its parts are told apart by the number of restarts, which each machine
    counts for itself: a machine whose worker failed would look into another part than one that was told to restart.
    """
    host = os.environ["MASTER_ADDR"]
    lasting = dist.TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=TIMEOUT)
    if rank == 0:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        lasting.set(_MEETING, str(store.port))
        _wait_until(lambda: store.add("here", 0) == world_size - 1 or None)
        store.set("all here", "")
        return store
    return _wait_until(lambda: _meet_rank_0(host, int(lasting.get(_MEETING))))


def _meet_rank_0(host: str, port: int) -> dist.Store | None:
    """None: that was a rank 0 of before a restart."""
    try:
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        store.add("here", 1)
        store.wait(["all here"], TIMEOUT)
    except RuntimeError:
        return None
    store.set_timeout(TIMEOUT)
    return store


def _wait_until(found: Callable[[], T | None], timeout: timedelta = TIMEOUT) -> T:
    """What `found` returns once it is not None."""
    deadline = time.monotonic() + timeout.total_seconds()
    while (result := found()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The processes of this training did not meet within {timeout}.")
        time.sleep(0.1)
    return result


def _make_trainer(args: argparse.Namespace) -> nnUNetTrainerPlugin:
    """The trainer, with what it goes on from."""
    # counted for each machine, which the others follow
    restarted = max(gather_objects(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))) > 0
    fold = args.fold if args.fold == "all" else int(args.fold)
    trainer = get_trainer_from_args(
        args.dataset, args.configuration, fold, args.tr, args.p, args.c or restarted, torch.device(args.device)
    )
    if not isinstance(trainer, nnUNetTrainerPlugin):
        raise UserError(f"{args.tr} is not of nnunet_dvcl: `nnunet_dvcl trainers` lists those that train here.")
    trainer.disable_checkpointing = args.disable_checkpointing
    found = any(Path(trainer.output_folder).glob("checkpoint_*.pth"))
    if found and not (args.c or args.val or restarted):
        raise UserError(
            f"{trainer.output_folder} holds checkpoints of an earlier training, which a restart could not tell from "
            "its own. Give --c to go on from there, or remove the folder."
        )
    goes_on = args.c or (found and restarted and not args.val)
    maybe_load_checkpoint(trainer, goes_on, args.val, None if found and restarted else args.pretrained_weights)
    epochs = gather_objects(trainer.current_epoch)
    if len(set(epochs)) > 1:
        raise UserError(
            f"The ranks would begin at epochs {epochs}: nnUNet_results has to be a folder that all machines share."
        )
    return trainer


if __name__ == "__main__":
    main()
