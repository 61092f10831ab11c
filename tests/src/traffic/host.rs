//! A thread with an event loop inside a namespace: where the servers and clients of one host live.

use std::{sync::mpsc, thread};

use anyhow::{Context, Result};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::lab::Namespace;

/// An event loop in a namespace. Every socket that its tasks open belongs there. Dropping it ends its tasks.
#[derive(Debug)]
pub struct Host {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Host {
    /// Starts one.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = namespace.spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            tell.send(runtime.handle().clone())?;
            // An error means that the owner is gone, which is the same request.
            let _ = runtime.block_on(stopped);
            Ok(())
        })?;
        let handle = told.recv().with_context(|| format!("no event loop in {}", namespace.name()))?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Starts `task` on the host.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Runs `task` on the host and waits for its result.
    pub fn call<T: Send + 'static>(&self, task: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let (tell, told) = mpsc::channel();
        self.spawn(async move {
            let _ = tell.send(task.await);
        });
        told.recv().context("the host's event loop has ended")?
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
