"""A file's name is its option's name."""

import pytest

from service.contract import plugins
from service.contract.errors import UnknownOption


def test_options_are_the_files_that_do_not_begin_with_an_underscore():
    assert plugins.names("service.stores") == ["directory", "redis"]
    assert {"null", "ort"} <= set(plugins.names("service.engines"))


def test_an_option_is_its_module():
    assert plugins.load("service.engines", "null").__name__ == "service.engines.null"


def test_a_dotted_name_is_somebody_elses_module():
    assert plugins.load("service.engines", "service.stores.directory").__name__ == "service.stores.directory"


@pytest.mark.parametrize("name", ["nowhere", "_protocol", "", "no.such.module"])
def test_what_has_no_file_is_refused(name):
    with pytest.raises(UnknownOption):
        plugins.load("service.engines", name)


def test_the_error_lists_what_there_is():
    with pytest.raises(UnknownOption, match="it has directory, redis"):
        plugins.load("service.stores", "nowhere")
