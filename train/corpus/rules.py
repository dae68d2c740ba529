"""Rules are functions of one text. What a rule raises concerns that text alone, and has the rule's name."""

from collections.abc import Callable

from zh_modernbert.train.common.cli import InputError, one_line


class RuleError(Exception):
    """A rule raised on one text.

    Attributes:
        rule: the name of the rule.
        reason: what it raised, on one line.
    """

    def __init__(self, rule: str, error: Exception):
        self.rule, self.reason = rule, f"{type(error).__name__}: {one_line(error)}"
        super().__init__(f"{rule}: {self.reason}")


def apply_rule(rule: Callable, *arguments):
    """What the rule returns.

    Raises:
        InputError: the settings are bad, which the rule found out.
        RuleError: the rule raised anything else.
    """
    try:
        return rule(*arguments)
    except (InputError, RuleError):  # a rule may apply others
        raise
    except Exception as error:
        raise RuleError(rule.__name__, error) from error
