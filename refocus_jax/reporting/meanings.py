"""What the numbers of evaluations mean, in plain words."""

import re

# By name, without "validation/", what they are of ("reconstruction_"), the network ("_efflite0") and the scale.
_MEANINGS = {
    "psnr": "Of held-out images after encoding and decoding, in dB. Higher is better: 3 dB is half the squared error.",
    "thumbnail_psnr": "PSNR of plain thumbnails with as many pixels as the last scale has tokens, enlarged, in dB.",
    "psnr_gain": "How far tokens are ahead of thumbnails, in dB. Above 0: they hold more than a thumbnail does.",
    "ssim": "Likeness of structure, 1 for equal images.",
    "view_psnr": "Of the coarser views decoded from their own tokens, in dB. Higher is better.",
    "alias_explained": "Share of the alias residual's energy that its tokens tell. Higher is better.",
    "structure_perplexity": "Codes in use, those that are rare counting little. Near 1: the codebook has collapsed.",
    "alias_perplexity": "Codes of the alias tokenizer in use, those that are rare counting little.",
    "structure_usage": "Share of the codebook that occurs in held-out images.",
    "alias_usage": "Share of the alias tokenizer's codebook that occurs in held-out images.",
    "latent_gap": "How far a view's latents are from the finest ones reduced to its size, relative to these.",
    "cross_entropy": "The student's surprise at the tokens of held-out images, in nats per token. Lower is better.",
    "accuracy": "Share of tokens that the student's likeliest guess gets right.",
    "bits_per_image": "Bits that the student needs for all tokens of a held-out image. Lower is better.",
    "unigram_cross_entropy": "Surprise of one who knows only how frequent each token is, by scale and class.",
    "unigram_entropy": "The same on its own training images.",
    "below_unigram_cross_entropy": "How much less surprised the student is than that, as a share. Above 0: it has "
                                   "learned more than frequencies.",
    "below_unigram_entropy": "The same against a unigram model that has seen the answers.",
    "teacher_minus_student/mean": "Difference of their surprise over the alias scales, in nats per token. Below 0: "
                                  "alias tokens help the teacher.",
    "teacher_minus_student/low": "Lower end of the 95 % interval.",
    "teacher_minus_student/high": "Upper end of the 95 % interval.",
    "fid": "Fréchet distance between features of drawn and of real images (Inception). Lower is better. It falls with "
           "the number of images: compare only FIDs of the same numbers.",
    "sfid": "FID of features that keep where things are. Lower is better.",
    "fd": "As FID, of another network's features: compare it with its own kind alone. Lower is better.",
    "kid": "Kernel distance of the same features, without FID's bias for few images. Lower is better.",
    "precision": "Share of drawn images that look like real ones. Higher is better.",
    "recall": "Share of real images that drawn ones come close to: variety. Higher is better.",
    "inception_score": "How recognizable and varied drawn images are. Higher is better; only ImageNet's are known.",
    "standard_error": "Standard error of the number above.",
    "standard_deviation": "Standard deviation of the number above over its parts.",
}


def of(name: str) -> str:
    """The meaning of a number's name; empty if unknown."""
    base = re.sub(r"/(all|scale_\d+)$", "", name.removeprefix("validation/").removeprefix("reconstruction_"))
    base = re.sub(r"^.*_(standard_(?:error|deviation))$", r"\1", base).removesuffix("_efflite0")
    return _MEANINGS.get(base, "")
