"""Every error that a user can cause: a stable code, what is wrong, and what to do about it."""

from __future__ import annotations

CODES: dict[str, str] = {
    "M001": "The model file does not exist.",
    "M002": "A file was expected where a directory stands.",
    "M003": "The file is no model in a format that goodnet reads, or it is empty or damaged.",
    "M004": "The file is a pickle that would run code while it is loaded, so it was not loaded.",
    "M005": "The Keras model carries Python code (a Lambda layer, a custom function).",
    "M006": "The model has a layer that goodnet cannot translate.",
    "M007": "The file holds weights only, so the network they belong to must be given.",
    "M008": "The architecture file could not be used, or the weights do not fit its network.",
    "M009": "The model is not an image classifier with at least two classes.",
    "M010": "The images do not have the size that the model takes.",
    "M011": "The Python object is not a model that goodnet reads.",
    "M012": "The model answers with NaN or infinity, or fails on ordinary images.",
    "M013": "The remedy found no last layer that it can re-fit.",
    "M014": "The program in the file calls operations that reach outside the model.",
    "M015": "The model cannot be given a filter, or has one already.",
    "M016": "The program in the file does not come to an end.",
    "D001": "The data do not exist.",
    "D002": "The data are not in a layout that goodnet reads.",
    "D003": "The data file is empty, cut short or damaged.",
    "D004": "The data file lacks the images or the labels.",
    "D005": "The images do not have a usable shape.",
    "D006": "The images hold NaN or infinite pixels, or pixels outside their range.",
    "D007": "Some labels lie outside the model's classes.",
    "D008": "All images have the same label.",
    "D009": "There are fewer than 10 images.",
    "D010": "The model is no better than chance on the clean images, whatever the preprocessing.",
    "D011": "The stated preprocessing is not known.",
    "D012": "There are not as many labels as images.",
    "D013": "A picture could not be read.",
    "O001": "The output could not be written.",
    "O002": "The disk is full.",
    "O003": "The output would overwrite an input.",
    "O004": "The output's name asks for a format that this model is not written in.",
    "R001": "The run was interrupted.",
    "R002": "The scan report does not belong to this model, or cannot be used.",
    "R003": "An option has a value that cannot be used.",
    "R004": "Nothing to repair: the scan found no backdoor.",
    "R005": "No remedy passed its check on the images that were held out.",
    "R006": "An unexpected failure inside goodnet: a defect, please report it.",
    "R007": "The worker of a model was lost again and again.",
    "R008": "The Ray cluster cannot be used.",
    "R009": "The repair is done, but the held-out images do not certify it.",
    "R010": "The model cannot be looked at on the device that was named.",
    "R011": "Every learning rate of the remedy changes answers to clean images.",
}
"""Code -> what it means in one sentence. Letters: Model, Data, Output, Run."""


class GoodnetError(Exception):
    """What a user can cause and mend.

    Args:
        code: a key of :data:`CODES`.
        message: one line: what is wrong, with the names and numbers of this case.
        hint: one line: what to do now.
    """

    def __init__(self, code: str, message: str, hint: str) -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.hint = hint
