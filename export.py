"""A run as a folder that diffusers opens alone: `python export.py --preset demo`.

The parts of this experiment (autoencoder, CLIP text model, UNet with cross-attention, scheduler)
are those of Stable Diffusion, so `StableDiffusionPipeline.from_pretrained` opens the folder.
"""

from command_line import add_checkpoint, command, config_from, parser, path


@command
def main() -> None:
    """Export the weights of a preset's run."""
    options = parser(__doc__)
    options.add_argument("--out", type=path, help="default: outputs/<preset>/pipeline")
    options.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder as well")
    add_checkpoint(options)
    arguments = options.parse_args()
    config, repository = config_from(arguments), arguments.push_to_hub
    out = arguments.out or config.output_folder / "pipeline"
    from inference.exporting import export
    from inference.opening import find_run
    from inference.text_to_face import TextToFace

    run, which = find_run(config), arguments.checkpoint
    model = TextToFace.from_run(run, "cpu", arguments.changes, which, for_sampling=False)
    if repository:
        make_repository(repository)  # before the work, and not for weights that are not there
    export(model, out, config.output_folder / "evaluations")
    print(f"{model.identity} -> {out}")
    if repository:
        from huggingface_hub import upload_folder

        upload_folder(repo_id=repository, folder_path=out)


def make_repository(name: str) -> None:
    """Make a private repository on the hub, if it is not there.

    Raises:
        ValueError: no such name, no login, or no network.
    """
    from huggingface_hub import create_repo
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        create_repo(name, exist_ok=True, private=True)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"--push-to-hub {name}: {error}") from error


if __name__ == "__main__":
    main()
