//! The state directory's disk fills up, and has room again.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::json;
use sluice_tests::{Service, system};

use crate::stage::{FRONTEND, Stage, path};

/// Changes that may still fit into what the store had already.
const PATIENCE: u32 = 200;

/// A small file system that only this thread and the processes it starts can see.
struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    fn mount(place: &Path) -> Result<Self> {
        // Before this thread is alone: everybody needs it.
        system::bpffs()?;
        let nothing: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).context("leaving the mount namespace of the host")?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
            .context("making mounts private")?;
        fs::create_dir_all(place)?;
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("size=8m,mode=700"))
            .context("mounting a tmpfs")?;
        Ok(Self { place: place.to_owned() })
    }

    /// Lets nothing be written, or everything again.
    fn set_read_only(&self, read_only: bool) -> Result<()> {
        let nothing: Option<&str> = None;
        let flags = if read_only { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
        mount(nothing, &self.place, nothing, flags, nothing).context("remounting the tmpfs")
    }

    /// Takes all the room there is. Returns the file to remove.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.place.join("ballast");
        let mut file = File::create(&path)?;
        while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        Ok(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
    }
}

/// In a thread of its own, because it leaves the host's mounts for good.
fn alone(test: fn() -> Result<()>) -> Result<()> {
    thread::spawn(test).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_room() -> Result<()> {
    alone(|| {
        let mut disk = None;
        let mut stage = Stage::with("full", |agent| {
            disk = Some(SmallDisk::mount(&agent.state_dir()));
            agent
        })?;
        let disk = disk.context("the agent was made")??;
        let service = stage.service(&[1, 1])?;
        stage.put(&service)?;
        stage.zero("node/n1")?;
        let ballast = disk.fill()?;
        let large = |number: u32| {
            let service = Service::new(&format!("large-{number}"), &format!("10.97.0.{number}:80"));
            (0..50).fold(service, |service, backend| {
                service.backend_on("n3", &format!("b{backend}"), &format!("10.{number}.0.{}:80", backend + 1), 1)
            })
        };
        let put = |number: u32| {
            let service = large(number);
            stage.agent.put(&format!("/v1/services/{}", service.name()), &service.json())
        };
        let mut refused = None;
        for number in 1..=PATIENCE {
            let answer = put(number)?;
            if answer.status == 500 {
                refused = Some((number, answer.json()));
                break;
            }
            assert_eq!(answer.status, 201, "{}", answer.text());
        }
        let (number, problem) = refused.context("the disk is never full")?;
        assert!(problem["detail"].as_str().unwrap().contains("saving the change"), "{problem}");
        stage.agent.get(&format!("/v1/services/large-{number}"))?.expect_status(404);
        // What cannot be kept is not done.
        for _ in 0..3 {
            assert_eq!(put(number)?.status, 500);
        }
        let client = stage.client()?;
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 10);
        // But a zero is: it holds in the kernel, says that it is not saved, and a drain of it ends in its time.
        let zeroed = stage.agent.post(&path("node/n2", "zero"), &json!({"force": true}))?.expect_status(200);
        let warning = zeroed.header("warning").context("it says that it is not saved")?;
        assert!(warning.contains("not saved"), "{warning}");
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 0);
        let drain = ["drain", "node/n2", "--force", "--deadline", "1s", "--wait", "drained", "--timeout", "20s"];
        let drained = stage.agent.cli(&drain)?;
        assert_eq!(drained.status.code(), Some(0), "{drained:?}");
        stage.agent.post(&path("node/n2", "restore"), &json!({}))?.expect_status(200);
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 10);
        fs::remove_file(ballast)?;
        stage.agent.post(&path("node/n1", "restore"), &json!({}))?.expect_status(200);
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 5);
        put(number)?.expect_status(201);
        stage.zero("node/n2")?;
        stage.agent.kill()?;
        stage.agent.start()?;
        assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
        assert_eq!(stage.backend("shop", "b2")?["state"], "zero");
        let services = stage.agent.get("/v1/services")?.expect_status(200).json();
        assert_eq!(services["items"].as_array().map(Vec::len), Some(number as usize + 1));
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 10);
        drop(disk);
        Ok(())
    })
}

#[test]
fn an_agent_starts_on_a_disk_that_takes_no_writes() -> Result<()> {
    alone(|| {
        let mut disk = None;
        let mut stage = Stage::with("read-only", |agent| {
            disk = Some(SmallDisk::mount(&agent.state_dir()));
            agent
        })?;
        let disk = disk.context("the agent was made")??;
        let service = stage.service(&[1, 1])?;
        stage.put(&service)?;
        stage.zero("node/n1")?;
        assert!(stage.agent.terminate()?.success());
        disk.set_read_only(true)?;
        let client = stage.client()?;
        stage.agent.start()?;
        assert!(!stage.agent.log().contains("move it away"), "{}", stage.agent.log());
        assert_eq!(stage.backend("shop", "b1")?["state"], "zero");
        assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 10);
        let larger = Service::new("other", "10.97.0.1:80").backend("x", "10.9.0.1:80", 1);
        assert_eq!(stage.agent.put("/v1/services/other", &larger.json())?.status, 500);
        let zeroed = stage.agent.post(&path("node/n2", "zero"), &json!({"force": true}))?.expect_status(200);
        assert!(zeroed.header("warning").is_some());
        disk.set_read_only(false)?;
        stage.put(&larger)?;
        stage.agent.kill()?;
        stage.agent.start()?;
        assert_eq!(stage.backend("shop", "b2")?["state"], "zero");
        drop(disk);
        Ok(())
    })
}
