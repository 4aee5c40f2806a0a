"""The command itself, and the arguments that several verbs share."""

from typing import Annotated

from cyclopts import App, Parameter

from hqvae import __version__

STOPPED = 130  # exit code where somebody asked to stop

app = App(
    name="hqvae",
    version=__version__,
    help="Train hierarchical discrete codes, and see layer by layer what they carry.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says so itself
)
_DATA_HELP = "Folder of images or sounds, Parquet, arrays (.npy .npz .pt), Hugging Face data set"

# Arguments that several verbs share, with their help.
Setting = Annotated[str, Parameter(allow_leading_hyphen=False)]
Switch = Annotated[bool, Parameter(negative="")]
RunFolder = Annotated[str, Parameter(help="Run folder that `hqvae train` wrote.")]
Accelerator = Annotated[str, Parameter(help="auto, cpu or cuda.")]
Split = Annotated[str, Parameter(help="train, validation or test.")]
Limit = Annotated[int | None, Parameter(help="At most so many images.")]
Data = Annotated[str, Parameter(help=f"{_DATA_HELP}, or photos (built in).")]
TrainingData = Annotated[str | None, Parameter(help=f"{_DATA_HELP}; photos (built in) if none.")]
OtherData = Annotated[str | None, Parameter(help="Data as for train; the run's own if none.")]
