"""Models, weights, images and devices by name: what a command line needs before anything can be measured."""

from rankscope._base.checks import device_of as resolve_device
from rankscope.loading._from_torchvision import check_torchvision as pretrained_choice
from rankscope.loading._hub import unreachable
from rankscope.loading._torchvision import ensure_torchvision
from rankscope.loading.batchnorm import calibrate_batchnorm
from rankscope.loading.class_folders import class_folders, split_folder
from rankscope.loading.class_order import ClassOrder, class_order, imagenet_classes
from rankscope.loading.images import IMAGE_SUFFIXES, Images, image_files, is_image, load_images
from rankscope.loading.models import check_spec, load_model
from rankscope.loading.preprocessing import Preprocessing, plain_preprocessing
from rankscope.loading.record import LoadedModel
from rankscope.loading.texts import Texts, load_tokenizer, read_texts
from rankscope.loading.weights import check_finite, load_weights, read_weights

__all__ = [
    "IMAGE_SUFFIXES",
    "ClassOrder",
    "Images",
    "LoadedModel",
    "Preprocessing",
    "Texts",
    "calibrate_batchnorm",
    "check_finite",
    "check_spec",
    "class_folders",
    "class_order",
    "ensure_torchvision",
    "image_files",
    "imagenet_classes",
    "is_image",
    "load_images",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "plain_preprocessing",
    "pretrained_choice",
    "read_texts",
    "read_weights",
    "resolve_device",
    "split_folder",
    "unreachable",
]
