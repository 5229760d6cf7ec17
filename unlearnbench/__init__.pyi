"""The public names of unlearnbench and where they are defined: add a name here to make it public."""

from .api import compare as compare
from .api import leaderboard as leaderboard
from .api import load_records as load_records
from .api import run as run
from .api import samples as samples
from .attacks.base import Attack as Attack
from .attacks.base import Look as Look
from .data.wording import Words as Words
from .diffusion.model import Batch as Batch
from .diffusion.model import Condition as Condition
from .diffusion.model import Diffusion as Diffusion
from .diffusion.model import Guidance as Guidance
from .diffusion.sampler import Sampler as Sampler
from .method import Method as Method
from .method import TextMethod as TextMethod
from .metric import FeatureMetric as FeatureMetric
from .metric import Known as Known
from .metric import Metric as Metric
from .metric import Outcome as Outcome
from .metric import Score as Score
from .models.external.apply import apply_checkpoint as apply_checkpoint
from .models.external.apply import checkpoint_address as checkpoint_address
from .models.external.apply import checkpoint_fit as checkpoint_fit
from .models.external.apply import checkpoint_hash as checkpoint_hash
from .records.schema import Record as Record
from .reporting import note as note
from .reporting import track as track
from .storage.lazy_arrays import Table as Table
from .storage.lazy_arrays import taken as taken
from .task import Plan as Plan
from .task import Protocol as Protocol
from .task import Task as Task
from .training import Diverged as Diverged
from .training import gradients as gradients
from .training import minimise as minimise

__version__: str
