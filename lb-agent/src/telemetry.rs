//! Logs of the agent: to standard error, as text or JSON, filtered by `--log-level`.

use std::{io::IsTerminal, time::Duration};

use tracing_subscriber::{EnvFilter, fmt};

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// For machines: one JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Says nothing of its own: each of its failures is told once more, with what failed and the mend.
const MUTED: &str = "kube_client=off";

/// Begins to log what `directives` ask for; a second call changes nothing.
pub fn install(directives: &str, format: LogFormat) {
    let filter = EnvFilter::new(format!("{MUTED},{directives}"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
    };
}

/// Waits for `work`, and after each second of it says that it still goes on.
pub async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    for seconds in 1_u32.. {
        tokio::select! {
            result = &mut work => return result,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                tracing::info!(seconds, "still {what}");
            }
        }
    }
    work.await
}
