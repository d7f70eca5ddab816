//! Waiting for what happens elsewhere.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Time between the first two looks.
const FIRST: Duration = Duration::from_millis(50);
/// Longest time between two looks.
const LONGEST: Duration = Duration::from_millis(500);

/// Looks again and again until there is something, `what`, or an error, or `patience` is over.
///
/// # Errors
/// That of `look`, or that the time is over.
pub async fn until<T>(
    patience: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    // On an emulated processor, looking costs what is looked for.
    let mut interval = FIRST;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", patience.as_secs());
        }
        sleep(interval).await;
        interval = (interval * 5 / 4).min(LONGEST);
    }
}
