from pathlib import Path

from meshctl.stack.layout import Layout
from meshctl.stack.mariadb import MariaDB, MariaDBSizes
from meshctl.stack.packages import Programs


def test_its_temporary_files_stay_out_of_the_folder_that_every_starting_server_sweeps(tmp_path: Path) -> None:
    nowhere = Path("/nowhere")
    programs = Programs(nowhere, nowhere, nowhere, nowhere, nowhere, nowhere)
    layout = Layout.of(tmp_path / ".mesh")
    server = MariaDB(layout, 3306, programs, None, MariaDBSizes())
    assert f"--tmpdir={layout.run}" in server.command().argv
