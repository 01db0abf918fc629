//! How commands print data: as a table for people, as JSON or YAML for programs.

use std::io::{self, Write};

use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;

/// Flags of the commands that print data.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// Shape of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
}

/// Shape of the output.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub(super) enum Format {
    /// One JSON document.
    Json,
    /// Columns.
    Table,
    /// Columns with everything in them.
    Wide,
    /// One YAML document.
    Yaml,
}

impl Format {
    /// Writes data to standard output; `text` makes the form for people.
    pub(super) fn print<T: Serialize>(
        self,
        data: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(data)?,
            Self::Table | Self::Wide => text(),
            Self::Yaml => serde_saphyr::to_string(data)?,
        };
        match writeln!(io::stdout(), "{}", text.trim_end()) {
            // Whoever read it, as `head` does, has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Columns without lines, as kubectl prints them.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    let columns = table.column_iter_mut();
    columns.for_each(|column| {
        column.set_padding((0, 2));
    });
    table.trim_fmt()
}
