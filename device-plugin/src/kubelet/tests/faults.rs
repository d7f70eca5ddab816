//! A kubelet that hangs, refuses or is away, and sockets that somebody takes away: the endpoint goes on for ever, and
//! without haste. The hours in here pass on the clock that tokio turns when nobody has anything to do.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UnixListener;
use tokio::time::sleep;
use tokio_util::sync::DropGuard;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// What is no haste, of attempts in an hour: the longest waits are a minute, those of silence ten.
const ATTEMPTS: std::ops::RangeInclusive<u64> = 20..=100;
const ANNOUNCEMENTS: std::ops::RangeInclusive<u64> = 5..=30;

/// A kubelet that takes every connection and never says anything.
struct HungKubelet {
    connections: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl HungKubelet {
    fn start(places: &Places) -> Self {
        let listener = UnixListener::bind(places.registration_socket()).unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let (stop, counter) = (CancellationToken::new(), connections.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            let mut kept = Vec::new();
            loop {
                kept.push(listener.accept().await.unwrap());
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }));
        Self { connections, _stop: stop.drop_guard() }
    }
}

impl Node {
    /// A node whose plugin waits as long as on a machine.
    fn unhurried(watched: bool) -> Self {
        Self::with_patience(watched, Patience::default())
    }

    fn sockets(&self) -> u64 {
        self.metrics.sockets(&self.pool.borrow().conf.resource)
    }

    fn is_heard(&self) -> bool {
        self.metrics.is_heard(&self.pool.borrow().conf.resource)
    }

    async fn socket_once_made(&self) -> std::path::PathBuf {
        self.until(|node| node.socket().exists()).await;
        self.socket()
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let wait = async {
            while !condition(self) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(10), wait).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_kubelet_is_asked_without_haste() {
    let node = Node::unhurried(false);
    let hung = HungKubelet::start(&node.places);
    sleep(HOUR).await;
    let attempts = hung.connections.load(Ordering::Relaxed);
    assert!(ATTEMPTS.contains(&attempts), "{attempts} calls of Register in an hour");
    assert_eq!(node.sockets(), 1);
    drop(hung);
    FakeKubelet::start(&node.places, 0).wait_for(RESOURCE, &ONE).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_kubelet_there_is_no_haste() {
    for watched in [true, false] {
        let node = Node::unhurried(watched);
        sleep(HOUR).await;
        let sockets = node.sockets();
        // In one way each announcement is a new socket, in the other it is a call that nobody takes.
        let expected = if watched { ANNOUNCEMENTS } else { 1..=1 };
        assert!(expected.contains(&sockets), "watched {watched}: {sockets} sockets in an hour");
        // A socket that was left by a kubelet which has died.
        if !watched {
            drop(UnixListener::bind(node.places.registration_socket()).unwrap());
            sleep(HOUR).await;
        }
        FakeKubelet::start(&node.places, 0).wait_for(RESOURCE, &ONE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_refuses_for_an_hour_is_asked_without_haste() {
    for watched in [true, false] {
        let node = Node::unhurried(watched);
        let kubelet = FakeKubelet::start(&node.places, usize::MAX);
        sleep(HOUR / 6).await;
        let attempts = if watched { node.sockets() } else { kubelet.requests().len() as u64 };
        assert!((5..=20).contains(&attempts), "watched {watched}: {attempts} refusals in ten minutes");
        assert!(!node.is_heard());
        drop(kubelet);
        FakeKubelet::start(&node.places, 0).wait_for(RESOURCE, &ONE).await;
        assert!(node.is_heard());
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_taken_away_again_and_again_is_made_without_haste() {
    for watched in [true, false] {
        let node = Node::unhurried(watched);
        let taking = async {
            loop {
                let _ = std::fs::remove_file(node.socket());
                sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = timeout(Duration::from_secs(20), taking).await;
        let sockets = node.sockets();
        assert!((5..=25).contains(&sockets), "watched {watched}: {sockets} sockets in 20 seconds");
        FakeKubelet::start(&node.places, 0).wait_for(RESOURCE, &ONE).await;
    }
}

#[tokio::test]
async fn nobody_is_said_to_listen_to_a_lost_socket() {
    let node = Node::unhurried(true);
    let mut plugin = FakeKubelet::plugin(node.socket_once_made().await).await;
    let _list = plugin.list_and_watch(Empty {}).await.unwrap();
    node.until(Node::is_heard).await;
    std::fs::remove_file(node.socket()).unwrap();
    node.until(|node| node.sockets() == 2).await;
    assert!(!node.is_heard(), "nobody has found the second socket");
}

#[tokio::test]
async fn wiped_directories_are_survived() {
    for watched in [true, false] {
        let node = Node::new(watched);
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        drop(kubelet);
        std::fs::remove_dir_all(&node.places.kubelet).unwrap();
        sleep(Duration::from_millis(200)).await;
        // kubelet makes them when it starts, in this order or the other.
        std::fs::create_dir_all(node.places.device_plugins()).unwrap();
        sleep(Duration::from_millis(50)).await;
        std::fs::create_dir(node.places.plugins_registry()).unwrap();
        let kubelet = FakeKubelet::start(&node.places, 0);
        kubelet.wait_for(RESOURCE, &ONE).await;
        node.until(|node| node.places.plugins_registry().join("intel.com_vfs.sock").exists()).await;
    }
}
