//! Single flight: readers share one query at a time, and get no text older than they
//! allow.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use sheep_client::ClientError;
use sheepfs_vfs::report::{Found, SingleFlight};
use tokio::sync::Semaphore;
use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// Queries that end when they are released; the text is their number.
#[derive(Clone, Default)]
struct Queries {
    begun: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    go: Arc<Gate>,
}

struct Gate(Semaphore);

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

/// Counts a query down even when it is dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Queries {
    fn report(&self) -> SingleFlight {
        let queries = self.clone();
        SingleFlight::new(move || queries.clone().run())
    }

    async fn run(self) -> Result<Vec<u8>, Arc<ClientError>> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let before = self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(Arc::clone(&self.running));
        assert_eq!(before, 0, "two queries at once");
        self.go.0.acquire().await.unwrap().forget();
        match number {
            13 => Err(Arc::new(ClientError::NoTag)),
            _ => Ok(number.to_string().into_bytes()),
        }
    }

    fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    fn release(&self, count: usize) {
        self.go.0.add_permits(count);
    }
}

/// Lets everything run that can.
async fn run_ready_tasks() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// The text as it is now.
async fn fresh(report: &SingleFlight) -> String {
    text(report.since(Instant::now()).await.unwrap())
}

/// The text as it was less than `age` ago.
async fn recent(report: &SingleFlight, age: Duration) -> String {
    text(report.since(Instant::now() - age).await.unwrap())
}

fn text(found: Found) -> String {
    String::from_utf8(found.text.bytes.to_vec()).unwrap()
}

fn ask(report: &SingleFlight) -> tokio::task::JoinHandle<String> {
    let report = report.clone();
    tokio::spawn(async move { fresh(&report).await })
}

#[tokio::test]
async fn single_flight_waiters_share_next_query() {
    let queries = Queries::default();
    let report = queries.report();
    let first = ask(&report);
    run_ready_tasks().await;
    let late: Vec<_> = (0..100).map(|_| ask(&report)).collect();
    run_ready_tasks().await;
    assert_eq!(queries.begun(), 1);

    queries.release(1);
    assert_eq!(first.await.unwrap(), "1");
    run_ready_tasks().await;
    assert_eq!(queries.begun(), 2);
    queries.release(1);
    for text in join_all(late).await {
        assert_eq!(text.unwrap(), "2");
    }
    assert_eq!(queries.begun(), 2);
}

#[tokio::test]
async fn single_flight_finished_text_serves_no_later_reader() {
    let queries = Queries::default();
    let report = queries.report();
    queries.release(2);
    assert_eq!(fresh(&report).await, "1");
    assert_eq!(fresh(&report).await, "2");
}

#[tokio::test]
async fn single_flight_abandoned_query_ends_and_blocks_nothing() {
    let queries = Queries::default();
    let report = queries.report();
    let first = ask(&report);
    run_ready_tasks().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(queries.running.load(Ordering::SeqCst), 0);

    queries.release(1);
    assert_eq!(fresh(&report).await, "2");
}

#[tokio::test]
async fn single_flight_dropped_reader_keeps_query_of_others() {
    let queries = Queries::default();
    let report = queries.report();
    let first = ask(&report);
    run_ready_tasks().await;
    let [second, third, fourth] = [ask(&report), ask(&report), ask(&report)];
    run_ready_tasks().await;
    first.abort();
    second.abort();
    queries.release(1);
    run_ready_tasks().await;
    // The abandoned query has ended, and one of the others runs the next.
    assert_eq!(queries.begun(), 2);
    third.abort();
    run_ready_tasks().await;
    queries.release(1);
    assert_eq!(fourth.await.unwrap(), "2");
    assert_eq!(queries.begun(), 2);
}

#[tokio::test]
async fn single_flight_error_reaches_all_waiters_uncached() {
    let queries = Queries::default();
    let report = queries.report();
    queries.begun.store(12, Ordering::SeqCst);
    let mut readers: Vec<_> = (0..3)
        .map(|_| Box::pin(report.since(Instant::now() - SECOND)))
        .collect();
    for reader in &mut readers {
        assert!(reader.now_or_never().is_none());
    }
    queries.release(2);
    assert!(join_all(readers).await.iter().all(Result::is_err));
    assert_eq!(queries.begun(), 13);
    assert_eq!(fresh(&report).await, "14");
}

#[tokio::test(start_paused = true)]
async fn single_flight_recent_text_needs_no_query() {
    let queries = Queries::default();
    let report = queries.report();
    queries.release(2);
    assert_eq!(recent(&report, SECOND).await, "1");
    tokio::time::advance(SECOND - Duration::from_millis(1)).await;
    assert_eq!(recent(&report, SECOND).await, "1");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(recent(&report, SECOND).await, "2");
}

#[tokio::test(start_paused = true)]
async fn single_flight_age_counts_from_query_start() {
    let queries = Queries::default();
    let report = queries.report();
    let slow = ask(&report);
    run_ready_tasks().await;
    tokio::time::advance(2 * SECOND).await;
    queries.release(2);
    assert_eq!(slow.await.unwrap(), "1");
    assert_eq!(recent(&report, SECOND).await, "2");
}

#[tokio::test(start_paused = true)]
async fn single_flight_young_running_query_is_shared() {
    let queries = Queries::default();
    let report = queries.report();
    let first = ask(&report);
    run_ready_tasks().await;
    let mut young = Box::pin(recent(&report, SECOND));
    assert!((&mut young).now_or_never().is_none());
    tokio::time::advance(2 * SECOND).await;
    let mut late = Box::pin(recent(&report, SECOND));
    assert!((&mut late).now_or_never().is_none());
    queries.release(2);
    assert_eq!(first.await.unwrap(), "1");
    assert_eq!(young.await, "1");
    assert_eq!(late.await, "2");
}

#[tokio::test]
async fn single_flight_mtime_changes_only_with_text() {
    let texts = Arc::new(Mutex::new("a"));
    let now = Arc::clone(&texts);
    let report = SingleFlight::new(move || {
        let text = now.lock().unwrap().as_bytes().to_vec();
        async move { Ok(text) }
    });
    let ask = async || report.since(Instant::now()).await.unwrap();
    let (first, second) = (ask().await, ask().await);
    assert!(second.asked > first.asked);
    assert!(Arc::ptr_eq(&first.text, &second.text));

    *texts.lock().unwrap() = "b";
    let third = ask().await;
    assert!(third.text.made > first.text.made);
    *texts.lock().unwrap() = "a";
    assert!(ask().await.text.made > third.text.made);
}
