"""OWLv2 (`Owlv2ForObjectDetection`): OWL-ViT's structure under another name, with a head for objectness.

That head gets detached features, so no adapter learns from it.
"""

from .owlvit import owl

OWLV2 = owl("owlv2", "Owlv2ForObjectDetection", image_size=960)
