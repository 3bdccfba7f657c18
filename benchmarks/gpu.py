"""The first minutes on a GPU, in stages that each leave their result as they end.

`python -m benchmarks.gpu` (`make bench-gpu`) measures what the card can do at best, whether it
computes what a CPU does, and the real training loop in each way it has here: milliseconds, images a
second, share of the matrix rate, memory, and the largest kernels. `--train MINUTES --latents FOLDER
--attributes FILE` then trains the full-size model and leaves pictures, losses and weights, see
`benchmarks.gpu_leg`. `--minutes` bounds everything; what finds no time is left out. `--quick` is a
rehearsal with small models, on a CPU too. It needs what training needs and downloads nothing;
weights are random. Results: `outputs/bench/gpu/`.
"""

import argparse
import os
import sys

from benchmarks import timing
from command_line import command, parser, path
from config import get_config


@command
def main() -> None:
    """Run the stages."""
    arguments = read_arguments()
    # torch takes seconds to import: a wrong word is answered before that.
    import diffusers
    import transformers

    from benchmarks import gpu_leg
    from benchmarks.agreement import switched
    from benchmarks.gpu_stages import FULL, QUICK, measure
    from benchmarks.report import Report
    from models.device import choose_device, require_accelerator
    from training.run_folder import describe_environment

    for library in (diffusers, transformers):  # the table is all there is to read
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    case, device = QUICK if arguments.quick else FULL, choose_device()
    require_accelerator(device, get_config(case.preset).data.image_size)
    os.environ["LDM_DEVICE"] = device.type  # a rehearsal on a CPU is meant
    leg = gpu_leg.plan(arguments, get_config(case.preset)) if arguments.train else None
    report = Report(arguments.out, device, arguments.minutes)
    print(f"about {arguments.minutes:.3g} minutes on {describe_environment(device)['device']}\n")
    measure(report, case, leg.seconds if leg else 0.0)
    if leg:
        with switched(report.best_way()) as is_compiled:
            gpu_leg.run(report, leg, is_compiled)
    print(f"\n-> {report.folder}")
    if report.failed():
        sys.exit(f"failed: {', '.join(report.failed())}; results.json tells more")


def read_arguments() -> argparse.Namespace:
    """The command line; `--preset` and `--set` choose the recipe of the training leg."""
    options = parser(__doc__)
    options.set_defaults(preset="celeba_hq_best")
    options.add_argument("--minutes", type=float, default=15, help="in all (default: 15)")
    options.add_argument("--quick", action="store_true", help="small models, for a CPU too")
    options.add_argument("--out", type=path, default=timing.OUT / "gpu", help="folder of results")
    options.add_argument("--train", type=float, default=0, metavar="MINUTES", help="default: none")
    options.add_argument("--latents", type=path, help="folder of the leg's latents")
    options.add_argument("--attributes", type=path, help="CelebAMask-HQ's attribute annotation")
    options.add_argument("--decoder", help="autoencoder that decodes the leg's pictures")
    arguments = options.parse_args()
    get_config(arguments.preset, arguments.changes)
    if arguments.train and (arguments.latents is None or arguments.attributes is None):
        options.error("--train needs --latents FOLDER and --attributes FILE")
    if arguments.train and (arguments.out / "run").exists():
        options.error(f"{arguments.out} holds a training leg: name another folder with --out")
    return arguments


if __name__ == "__main__":
    main()
