//! Runs what a request asks for, replies once, and logs a failure once.
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
use sheepfs_vfs::{Chain, Completion, FsError};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument as _, Level, Span};

use crate::convert;

/// What the kernel asked: the words of the log line when it fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// As fuse(4) calls it: `lookup`, `write`.
    pub(crate) operation: &'static str,
    /// The kernel's number of the request.
    pub(crate) request: u64,
    /// The process that asked; 0 when the kernel did on its own.
    pub(crate) pid: u32,
    pub(crate) ino: u64,
    /// In bytes; 0 where the operation has none.
    pub(crate) offset: u64,
    /// In bytes; 0 where the operation has none.
    pub(crate) len: u64,
}

impl Facts {
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

    fn log_failure(&self, failure: &Failure) {
        let Self {
            operation,
            request,
            pid,
            ino,
            offset,
            len,
        } = *self;
        let errno = failure.errno();
        if failure.level() == Level::WARN {
            tracing::warn!(
                request,
                pid,
                ino,
                offset,
                len,
                "{operation}: {failure} ({errno:?})"
            );
        } else {
            tracing::debug!(
                request,
                pid,
                ino,
                offset,
                len,
                "{operation}: {failure} ({errno:?})"
            );
        }
    }
}

/// Why a request is answered with an errno.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The tree could not do it.
    Tree(FsError),
    /// No tree was asked: sheepfs does not do such a thing.
    Refused(Errno),
}

impl Failure {
    fn errno(&self) -> Errno {
        match self {
            Self::Tree(error) => error.errno(),
            Self::Refused(errno) => *errno,
        }
    }

    /// What sheepfs never does is no news; what the tree could not do may be.
    fn level(&self) -> Level {
        match self {
            Self::Tree(error) => error.level(),
            Self::Refused(_) => Level::DEBUG,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => Chain(error).fmt(f),
            Self::Refused(errno) => f.write_str(errno.desc()),
        }
    }
}

impl From<FsError> for Failure {
    fn from(error: FsError) -> Self {
        Self::Tree(error)
    }
}

/// A reply that can be an errno, as all of fuser's can.
pub(crate) trait Reply: Send + 'static {
    fn refuse(self, errno: fuser::Errno);
}

macro_rules! replies {
    ($($reply:ty),+ $(,)?) => {
        $(impl Reply for $reply {
            fn refuse(self, errno: fuser::Errno) {
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

/// Where requests are worked on, and how many are not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    runtime: Handle,
    in_flight: TaskTracker,
    closed: Arc<AtomicBool>,
}

impl Answers {
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

    /// Refuses further requests, and returns when all others are answered.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    /// Answers with what `work` comes to.
    ///
    /// The first step is taken on the calling thread: most metadata is at hand,
    /// and a hand-over to the runtime costs more than the work does.
    pub(crate) fn work<T, R: Reply>(
        &self,
        facts: Facts,
        reply: R,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        succeed: impl FnOnce(R, T) + Send + 'static,
    ) where
        T: Send + 'static,
    {
        let Ok(in_flight) = self.admit() else {
            return refuse(facts, reply, CLOSED);
        };
        let _inside = self.runtime.enter();
        let mut work = Box::pin(work.instrument(facts.span()));
        match pin!(&mut work).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => conclude(facts, reply, result, succeed),
            Poll::Pending => {
                // `in_flight` is what waits for this task.
                drop(self.runtime.spawn(async move {
                    let result = work.await;
                    conclude(facts, reply, result, succeed);
                    drop(in_flight);
                }));
            }
        }
    }

    /// Answers with what `submit` passes to its completion, on whichever thread
    /// that happens.
    pub(crate) fn submit<T, R: Reply>(
        &self,
        facts: Facts,
        reply: R,
        succeed: impl FnOnce(R, T) + Send + 'static,
        submit: impl FnOnce(Completion<T>),
    ) {
        let Ok(in_flight) = self.admit() else {
            return refuse(facts, reply, CLOSED);
        };
        let _inside = self.runtime.enter();
        submit(Box::new(move |result| {
            conclude(facts, reply, result.map_err(Failure::Tree), succeed);
            drop(in_flight);
        }));
    }

    /// Counts a request before it looks whether it still may, so that none
    /// slips past [`Self::close`].
    fn admit(&self) -> Result<TaskTrackerToken, Closed> {
        let in_flight = self.in_flight.token();
        if self.closed.load(Ordering::SeqCst) {
            Err(Closed)
        } else {
            Ok(in_flight)
        }
    }
}

/// No more requests are taken.
struct Closed;

/// What the kernel itself answers a moment later, when this process is gone.
const CLOSED: Errno = Errno::ENOTCONN;

/// Answers a request at once with `errno`.
pub(crate) fn refuse(facts: Facts, reply: impl Reply, errno: Errno) {
    fail(facts, reply, &Failure::Refused(errno));
}

/// Answers a request at once with a result that needed no waiting.
pub(crate) fn conclude<T, R: Reply>(
    facts: Facts,
    reply: R,
    result: Result<T, Failure>,
    succeed: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => {
            facts.log_success();
            succeed(reply, value);
        }
        Err(failure) => fail(facts, reply, &failure),
    }
}

fn fail(facts: Facts, reply: impl Reply, failure: &Failure) {
    facts.log_failure(failure);
    reply.refuse(convert::errno(failure.errno()));
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Says what became of it.
    struct Told(mpsc::Sender<i32>);

    impl Reply for Told {
        fn refuse(self, errno: fuser::Errno) {
            self.0.send(errno.into()).unwrap();
        }
    }

    const ASKED: Facts = Facts {
        operation: "read",
        request: 1,
        pid: 1,
        ino: 1,
        offset: 0,
        len: 0,
    };

    fn succeed(reply: Told, (): ()) {
        reply.0.send(0).unwrap();
    }

    #[tokio::test]
    async fn closing_waits_for_requests_in_flight_and_refuses_later_ones() {
        let answers = Answers::new(Handle::current());
        let (sender, told) = mpsc::channel();
        let mut kept = None;
        answers.submit(ASKED, Told(sender.clone()), succeed, |done| {
            kept = Some(done);
        });

        let mut closing = pin!(answers.close());
        let mut context = Context::from_waker(Waker::noop());
        assert!(closing.as_mut().poll(&mut context).is_pending());

        answers.work(ASKED, Told(sender.clone()), async { Ok(()) }, succeed);
        assert_eq!(told.try_recv(), Ok(Errno::ENOTCONN as i32));
        answers.submit(ASKED, Told(sender), succeed, |_| {});
        assert_eq!(told.try_recv(), Ok(Errno::ENOTCONN as i32));

        kept.expect("it was submitted")(Ok(()));
        assert_eq!(told.try_recv(), Ok(0));
        closing.await;
    }

    #[tokio::test]
    async fn work_is_answered_in_place_when_it_need_not_wait() {
        let answers = Answers::new(Handle::current());
        let (sender, told) = mpsc::channel();
        answers.work(ASKED, Told(sender.clone()), async { Ok(()) }, succeed);
        assert_eq!(told.try_recv(), Ok(0));

        let refused = async { Err(Failure::Refused(Errno::EPERM)) };
        answers.work(ASKED, Told(sender.clone()), refused, succeed);
        assert_eq!(told.try_recv(), Ok(Errno::EPERM as i32));

        let (go, gone) = tokio::sync::oneshot::channel();
        let waits = async move { gone.await.map_err(|_| Failure::Refused(Errno::EIO)) };
        answers.work(ASKED, Told(sender), waits, succeed);
        assert!(told.try_recv().is_err());
        go.send(()).unwrap();
        answers.close().await;
        assert_eq!(told.try_recv(), Ok(0));
    }
}
