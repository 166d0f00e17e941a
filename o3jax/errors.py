"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in the input: one sentence that names the file or field and the remedy.

    Commands print the sentence and exit with code 2; library callers may catch it. It is a leaf
    module so that the data pipelines can raise it without importing a model.
    """
