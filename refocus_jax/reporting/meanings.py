"""Explanations of the numbers of evaluations in plain words."""

import re

# The keys are names without "validation/", "reconstruction_", the network ("_efflite0", "_efflite1") and the scale.
_MEANINGS = {
    "psnr": "PSNR of held-out images after encoding and decoding, in dB. Higher is better: 3 dB is half the squared "
            "error.",
    "thumbnail_psnr": "PSNR of enlarged thumbnails with as many pixels as the last scale has tokens, in dB.",
    "psnr_gain": "PSNR minus that of thumbnails, in dB. Above 0: tokens hold more than a thumbnail does.",
    "ssim": "Structural similarity of images, 1 for equal images. Higher is better.",
    "view_psnr": "PSNR of the coarser views decoded from their own tokens, in dB. Higher is better.",
    "alias_explained": "Fraction of the alias residual's energy that its tokens explain. Higher is better.",
    "structure_perplexity": "Effective number of codes in use; rare codes count little. Near 1: the codebook has "
                            "collapsed.",
    "alias_perplexity": "Effective number of the alias tokenizer's codes in use; rare codes count little.",
    "structure_usage": "Fraction of the codebook that occurs in held-out images.",
    "alias_usage": "Fraction of the alias tokenizer's codebook that occurs in held-out images.",
    "latent_gap": "Difference between a view's latents and the finest latents reduced to its size, relative to the "
                  "latter.",
    "cross_entropy": "The student's cross-entropy on the tokens of held-out images, in nats per token. Lower is "
                     "better.",
    "accuracy": "Fraction of tokens for which the student's most likely guess is right.",
    "bits_per_image": "Bits that the student needs for all tokens of a held-out image. Lower is better.",
    "unigram_cross_entropy": "Cross-entropy of a model that knows only how frequent each token is, by scale and class.",
    "unigram_entropy": "Cross-entropy of the same model on its own training images.",
    "below_unigram_cross_entropy": "By which fraction the student's cross-entropy is lower than the unigram model's. "
                                   "Above 0: it has learned more than frequencies.",
    "below_unigram_entropy": "The same compared with a unigram model on its own training images.",
    "teacher_minus_student/mean": "Difference of their cross-entropies over the alias scales, in nats per token. Below "
                                  "0: alias tokens help the teacher.",
    "teacher_minus_student/low": "Lower end of the 95 % interval.",
    "teacher_minus_student/high": "Upper end of the 95 % interval.",
    "fid": "Fréchet distance between features of drawn and of real images (Inception). Lower is better. It falls with "
           "the number of images: compare only FIDs of the same number of images.",
    "sfid": "FID with features that keep spatial positions. Lower is better.",
    "fd": "As FID, but with another network's features: compare it only with distances of the same network. Lower is "
          "better.",
    "fd_to_reconstructions": "Fréchet distance between features of drawn images and of the tokenizer's reconstructions "
                             "of held-out ones: what the generator adds to the tokenizer's own errors.",
    "fid_to_reconstructions": "The same with Inception's features.",
    "kid": "Kernel distance of the same features, without FID's bias for few images. Lower is better.",
    "precision": "Fraction of drawn images that look like real ones. Higher is better.",
    "recall": "Fraction of real images that drawn ones come close to, a measure of variety. Higher is better.",
    "inception_score": "How recognizable and varied drawn images are. Higher is better; only meaningful for classes "
                       "like ImageNet's.",
    "standard_error": "Standard error of the number above.",
    "standard_deviation": "Standard deviation of the number above over its parts.",
}


# Units of numbers whose names begin like this; "%" is for fractions.
_UNITS = {"psnr": "dB", "structure_usage": "%", "cross_entropy": "nats per token", "bits_per_image": "bits",
          "below_unigram": "%", "teacher_minus_student": "nats per token"}


def with_unit(name: str, value: float) -> str:
    """Formats a number with its unit."""
    unit = next((unit for beginning, unit in _UNITS.items() if name.startswith(beginning)), "")
    return f"{100 * value:.3g} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def of(name: str) -> str:
    """Returns the meaning of a number by its name; empty if unknown."""
    base = re.sub(r"/(all|scale_\d+)$", "", name.removeprefix("validation/").removeprefix("reconstruction_"))
    base = re.sub(r"^.*_(standard_(?:error|deviation))$", r"\1", base)
    base = re.sub(r"_efflite\d", "", base)
    return _MEANINGS.get(base, "")
