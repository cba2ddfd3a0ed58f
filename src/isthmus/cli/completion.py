"""``isthmus completion``: the completion script of a shell."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL, to be read when the shell starts.

    \b
    Examples:
      eval "$(isthmus completion bash)"                                  this bash
      isthmus completion zsh > ~/.zfunc/_isthmus                         every zsh
      isthmus completion fish > ~/.config/fish/completions/isthmus.fish  every fish
    """
    writer = get_completion_class(shell)
    assert writer is not None
    click.echo(writer(context.find_root().command, {}, "isthmus", "_ISTHMUS_COMPLETE").source())
