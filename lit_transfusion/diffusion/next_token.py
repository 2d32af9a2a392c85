"""The alternative to noise: images are tokens."""

from lit_transfusion.diffusion.process import NoiseProcess


class NextToken(NoiseProcess):
    """No noise: an image is a row of tokens, learned and drawn one by one like text (Chameleon Team, 2024).

    The codec must have a codebook (VQ); its codes are tokens after the vocabulary of the text. There is no patcher.
    """

    num_train_timesteps = 1
    samplers = ("next_token",)
    images_are_tokens = True

    def check_sampler(self, name: str | None, num_inference_steps: int) -> None:
        self.known_sampler(name)  # an image has as many steps as codes
