"""Text to ids and back."""


def __getattr__(name: str) -> object:
    from samout_train.config.moved import of_earlier_module

    return of_earlier_module(__name__, name)
