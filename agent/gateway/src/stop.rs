//! The wish to stop, as every task sees it.

use tokio::sync::watch;

/// Tells every [`Stop`] of its pair. Dropping it does the same: without it nobody could stop any more.
#[derive(Debug)]
pub struct StopCaller(watch::Sender<bool>);

/// Waits for the wish to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A caller and its first listener.
#[must_use]
pub fn pair() -> (StopCaller, Stop) {
    let (sender, receiver) = watch::channel(false);
    (StopCaller(sender), Stop(receiver))
}

impl StopCaller {
    /// From now on [`Stop::called`] returns at once.
    pub fn call(self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Returns when the process is to stop.
    pub async fn called(&mut self) {
        drop(self.0.wait_for(|stop| *stop).await);
    }
}
