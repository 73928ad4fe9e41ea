"""Data that several tests share: where real images lie, a tiny recipe, small releases."""

from pathlib import Path

SHARED = Path(__file__).parents[2] / "shared"

TINY_RECIPE = {
    "model": {"trunk": "hrnet_w18_small", "pretrained": False, "width": 8},
    "joint": {"steps": 4, "batch": 2, "crop": [64, 64], "validate_every": 2, "warmup": 1},
    "attention": {"steps": 2, "batch": 2, "crop": [64, 64], "validate_every": 2},
    "precision": "fp32",
}

# Releases in small. Of each place: its image, its labels, and what lies beside and is neither.
LAYOUTS = {
    "cityscapes": [
        ("train/aachen/aachen_0_19 train/stuttgart/stuttgart_0_20 val/lindau/lindau_0_21",
         "leftImg8bit/{}_leftImg8bit.png",
         "gtFine/{}_gtFine_labelIds.png gtCoarse/{}_gtCoarse_labelIds.png",
         "gtFine/{}_gtFine_color.png gtFine/{}_gtFine_instanceIds.png gtFine/{}_gtFine_p.json"),
        ("train_extra/bayreuth/bayreuth_0_1 train_extra/troisdorf/troisdorf_000000_000073",
         "leftImg8bit/{}_leftImg8bit.png",
         "gtCoarse/{}_gtCoarse_labelIds.png autolabelled/{}_leftImg8bit.png",
         "gtCoarse/{}_gtCoarse_polygons.json autolabelled/{}_leftImg8bit_prob.png"),
    ],
    "mapillary": [
        ("training validation", "{}/images/k-Ey_1.jpg", "{}/labels/k-Ey_1.png",
         "{}/instances/k-Ey_1.png {}/panoptic/k-Ey_1.png config.json"),
    ],
    "mapillary-v2": [
        ("training validation", "{}/images/k-Ey_1.jpg",
         "{}/v2.0/labels/k-Ey_1.png {}/v1.2/labels/k-Ey_1.png",
         "{}/v2.0/panoptic/k-Ey_1.png {}/v2.0/polygons/k-Ey_1.json config_v2.0.json"),
    ],
    "ade20k": [
        ("training/ADE_train_1 validation/ADE_val_1", "images/{}.jpg", "annotations/{}.png",
         "objectInfo150.txt"),
    ],
    "camvid": [
        ("train val", "{}/images/0006R0_f1.jpg", "{}/labels/0006R0_f1.png", "classes.json"),
    ],
    "camvid-segnet": [
        ("train val test", "{}/0001TP_1.png", "{}annot/0001TP_1.png", "{}.txt"),
    ],
    "voc": [  # whose lists begin with the word "neither", see `layout`
        ("train val", "JPEGImages/neither.jpg", "SegmentationClass/neither.png",
         "ImageSets/Segmentation/{}.txt ImageSets/Segmentation/trainval.txt ImageSets/Layout"),
    ],
    "aerial": [
        ("train val test_large", "{}/images/tile1.jpg", "{}/labels/tile1.png", "classes.json"),
    ],
    "lums-road": [
        ("train val test", "images/{}/240_6ba4f55c.jpg", "labels/{}/240_6ba4f55c.png",
         "classes.json"),
    ],
}  # fmt: skip
