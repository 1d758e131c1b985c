//! Runs requests, sends exactly one reply for each, and logs each failure once.
//!
//! Every request in flight holds a token of one [`TaskTracker`], so that the
//! end of a mount can wait for the last reply.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use nix::errno::Errno;
use sheepfs_vfs::{Chain, FsError};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument as _, Level, Span};

use crate::convert;

/// Metadata of a kernel request, for log lines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestInfo {
    /// As fuse(4) calls it: `lookup`, `write`.
    pub(crate) operation: &'static str,
    /// Unique id of the request (`fuse_in_header.unique`).
    pub(crate) request: u64,
    /// Process that caused the request; 0 for requests of the kernel itself.
    pub(crate) pid: u32,
    pub(crate) ino: u64,
    /// In bytes; 0 where the operation has none.
    pub(crate) offset: u64,
    /// In bytes; 0 where the operation has none.
    pub(crate) len: u64,
}

impl RequestInfo {
    fn span(&self) -> Span {
        tracing::debug_span!(
            "request",
            operation = self.operation,
            request = self.request,
            ino = self.ino,
            offset = self.offset,
            len = self.len
        )
    }

    fn log_success(&self) {
        let Self {
            operation,
            request,
            pid,
            ino,
            offset,
            len,
        } = *self;
        tracing::debug!(request, pid, ino, offset, len, "{operation}");
    }

    fn log_error(&self, error: &ReplyError) {
        let Self {
            operation,
            request,
            pid,
            ino,
            offset,
            len,
        } = *self;
        let errno = error.errno();
        if error.level() == Level::WARN {
            tracing::warn!(
                request,
                pid,
                ino,
                offset,
                len,
                "{operation}: {error} ({errno:?})"
            );
        } else {
            tracing::debug!(
                request,
                pid,
                ino,
                offset,
                len,
                "{operation}: {error} ({errno:?})"
            );
        }
    }
}

/// Why a request fails.
#[derive(Debug)]
pub(crate) enum ReplyError {
    /// The tree returned an error.
    Tree(FsError),
    /// sheepfs does not support the operation; the tree was not called.
    Refused(Errno),
}

impl ReplyError {
    fn errno(&self) -> Errno {
        match self {
            Self::Tree(error) => error.errno(),
            Self::Refused(errno) => *errno,
        }
    }

    /// Unsupported operations are logged at debug, errors of the tree at their own level.
    fn level(&self) -> Level {
        match self {
            Self::Tree(error) => error.level(),
            Self::Refused(_) => Level::DEBUG,
        }
    }
}

impl fmt::Display for ReplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => Chain(error).fmt(f),
            Self::Refused(errno) => f.write_str(errno.desc()),
        }
    }
}

impl From<FsError> for ReplyError {
    fn from(error: FsError) -> Self {
        Self::Tree(error)
    }
}

/// A reply of fuser, as far as errors are concerned.
pub(crate) trait Reply: Send + 'static {
    fn reply_errno(self, errno: fuser::Errno);
}

macro_rules! replies {
    ($($reply:ty),+ $(,)?) => {
        $(impl Reply for $reply {
            fn reply_errno(self, errno: fuser::Errno) {
                self.error(errno);
            }
        })+
    };
}

replies!(
    fuser::ReplyAttr,
    fuser::ReplyCreate,
    fuser::ReplyData,
    fuser::ReplyDirectory,
    fuser::ReplyEmpty,
    fuser::ReplyEntry,
    fuser::ReplyIoctl,
    fuser::ReplyLseek,
    fuser::ReplyOpen,
    fuser::ReplyPoll,
    fuser::ReplyStatfs,
    fuser::ReplyWrite,
    fuser::ReplyXattr,
);

/// Executes requests and tracks those in flight.
#[derive(Clone, Debug)]
pub(crate) struct Dispatcher {
    runtime: Handle,
    in_flight: TaskTracker,
    closed: Arc<AtomicBool>,
}

impl Dispatcher {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            in_flight: TaskTracker::new(),
            closed: Arc::default(),
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Refuses new requests and waits until all requests in flight have been replied to.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    /// Runs `work` and replies with its result.
    ///
    /// The future is polled once on the calling thread, because most metadata is
    /// cached and a hand-over to the runtime costs more than the work. If it is not
    /// ready it becomes a task.
    pub(crate) fn run<T, R: Reply>(
        &self,
        info: RequestInfo,
        reply: R,
        work: impl Future<Output = Result<T, ReplyError>> + Send + 'static,
        on_success: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let Ok(in_flight) = self.admit() else {
            return reply_errno(info, reply, CLOSED);
        };
        let _inside = self.runtime.enter();
        let mut work = Box::pin(work.instrument(info.span()));
        match pin!(&mut work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => finish(info, reply, result, on_success),
            Poll::Pending => {
                // `close` waits for the token, so the handle of the task is not needed.
                drop(self.runtime.spawn(async move {
                    let result = work.await;
                    finish(info, reply, result, on_success);
                    drop(in_flight);
                }));
            }
        }
    }

    /// A completion that replies, on the thread that calls it. After [`Self::close`]
    /// there is none, and the request is refused.
    pub(crate) fn completion<T, R: Reply, F>(
        &self,
        info: RequestInfo,
        reply: R,
        on_success: F,
    ) -> Option<impl FnOnce(Result<T, FsError>) + Send + use<T, R, F>>
    where
        F: FnOnce(R, T) + Send + 'static,
    {
        let Ok(in_flight) = self.admit() else {
            reply_errno(info, reply, CLOSED);
            return None;
        };
        Some(move |result: Result<T, FsError>| {
            finish(info, reply, result.map_err(ReplyError::Tree), on_success);
            drop(in_flight);
        })
    }

    /// Takes the token before checking the flag; otherwise a request could start
    /// after [`Self::close`] has returned.
    fn admit(&self) -> Result<TaskTrackerToken, Closed> {
        let in_flight = self.in_flight.token();
        if self.closed.load(Ordering::SeqCst) {
            Err(Closed)
        } else {
            Ok(in_flight)
        }
    }
}

/// The dispatcher accepts no more requests.
struct Closed;

/// What the kernel returns itself once this process has ended.
const CLOSED: Errno = Errno::ENOTCONN;

/// Replies with `errno`.
pub(crate) fn reply_errno(info: RequestInfo, reply: impl Reply, errno: Errno) {
    reply_error(info, reply, &ReplyError::Refused(errno));
}

/// Replies with `result` and logs it.
pub(crate) fn finish<T, R: Reply>(
    info: RequestInfo,
    reply: R,
    result: Result<T, ReplyError>,
    on_success: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => {
            info.log_success();
            on_success(reply, value);
        }
        Err(error) => reply_error(info, reply, &error),
    }
}

fn reply_error(info: RequestInfo, reply: impl Reply, error: &ReplyError) {
    info.log_error(error);
    reply.reply_errno(convert::errno(error.errno()));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Records the errno of the reply; 0 is success.
    struct RecordingReply(mpsc::Sender<i32>);

    impl Reply for RecordingReply {
        fn reply_errno(self, errno: fuser::Errno) {
            self.0.send(errno.into()).unwrap();
        }
    }

    const READ_INFO: RequestInfo = RequestInfo {
        operation: "read",
        request: 1,
        pid: 1,
        ino: 1,
        offset: 0,
        len: 0,
    };

    fn on_success(reply: RecordingReply, (): ()) {
        reply.0.send(0).unwrap();
    }

    #[tokio::test]
    async fn dispatcher_close_drains_requests_and_refuses_later_ones() {
        let dispatcher = Dispatcher::new(Handle::current());
        let (sender, replies) = mpsc::channel();
        let completion = dispatcher
            .completion(READ_INFO, RecordingReply(sender.clone()), on_success)
            .expect("the dispatcher is open");

        let mut closing = pin!(dispatcher.close());
        let mut context = Context::from_waker(Waker::noop());
        assert!(closing.as_mut().poll(&mut context).is_pending());

        dispatcher.run(
            READ_INFO,
            RecordingReply(sender.clone()),
            async { Ok(()) },
            on_success,
        );
        assert_eq!(replies.try_recv(), Ok(Errno::ENOTCONN as i32));
        let refused = dispatcher.completion(READ_INFO, RecordingReply(sender), on_success);
        assert!(refused.is_none());
        assert_eq!(replies.try_recv(), Ok(Errno::ENOTCONN as i32));

        completion(Ok(()));
        assert_eq!(replies.try_recv(), Ok(0));
        closing.await;
    }

    #[tokio::test]
    async fn dispatcher_replies_inline_when_future_is_ready() {
        let dispatcher = Dispatcher::new(Handle::current());
        let (sender, replies) = mpsc::channel();
        dispatcher.run(
            READ_INFO,
            RecordingReply(sender.clone()),
            async { Ok(()) },
            on_success,
        );
        assert_eq!(replies.try_recv(), Ok(0));

        let refused = async { Err(ReplyError::Refused(Errno::EPERM)) };
        dispatcher.run(
            READ_INFO,
            RecordingReply(sender.clone()),
            refused,
            on_success,
        );
        assert_eq!(replies.try_recv(), Ok(Errno::EPERM as i32));

        let (go, gone) = tokio::sync::oneshot::channel();
        let waits = async move { gone.await.map_err(|_| ReplyError::Refused(Errno::EIO)) };
        dispatcher.run(READ_INFO, RecordingReply(sender), waits, on_success);
        assert!(replies.try_recv().is_err());
        go.send(()).unwrap();
        dispatcher.close().await;
        assert_eq!(replies.try_recv(), Ok(0));
    }
}
