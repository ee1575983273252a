//! Tasks of the service, which can be counted only from within its process.

use std::time::{Duration, Instant};

use blkpilot_agent::config::Config;
use blkpilot_agent::server::Server;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::daemon::{CONFIG, INTERVAL, Site};
use super::{PATIENCE, polite, rude};

/// How long clients come.
const LENGTH: Duration = Duration::from_secs(2);

/// A service on a runtime of its own.
struct Service {
    runtime: Runtime,
    site: Site,
    _stop: oneshot::Sender<()>,
    _dir: TempDir,
}

impl Service {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let config = Config::parse(&dir.path().join("blkpilot.toml"), CONFIG).unwrap();
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(Server::start(config)).unwrap();
        let site = Site::new(&server.address().to_string(), &dir.path().join("data"));
        let (stop, stopped) = oneshot::channel();
        runtime.spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            runtime,
            site,
            _stop: stop,
            _dir: dir,
        }
    }

    fn tasks(&self) -> usize {
        self.runtime.metrics().num_alive_tasks()
    }

    /// Tasks once there have been equally many for a while.
    async fn quiet(&self) -> usize {
        let mut looks = tokio::time::interval(INTERVAL);
        let (mut alive, mut same) = (self.tasks(), 0);
        while same < 20 {
            looks.tick().await;
            let now = self.tasks();
            same = if now == alive { same + 1 } else { 0 };
            alive = now;
        }
        alive
    }

    /// Tasks once there are no more than these, or it has taken too long.
    async fn settle(&self, tasks: usize) -> usize {
        let deadline = Instant::now() + PATIENCE;
        let mut looks = tokio::time::interval(INTERVAL);
        loop {
            looks.tick().await;
            let alive = self.tasks();
            if alive <= tasks || Instant::now() >= deadline {
                return alive;
            }
        }
    }
}

#[test]
fn no_task_of_the_service_outlives_the_clients_that_it_was_for() {
    let service = Service::start();
    let clients = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    clients.block_on(async {
        // With one client each task that stays has begun.
        let begun = polite::call(&service.site, LENGTH / 4).await;
        assert!(begun.refusals.is_empty(), "{:#?}", begun.refusals);
        let before = service.quiet().await;
        let (served, visits) = tokio::join!(
            polite::call(&service.site, LENGTH),
            rude::visit_for(&service.site, LENGTH),
        );
        assert!(served.refusals.is_empty(), "{:#?}", served.refusals);
        let during = service.tasks();
        let after = service.settle(before).await;
        println!(
            "tasks: {before}, {during} when the last client left, {after} a moment later; {visits}"
        );
        assert!(after <= before, "{before} became {after}");
    });
}
