//! The laboratory itself: it carries traffic, tells what it saw, and leaves nothing behind.

use std::{
    env, fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Result;
use gateway_lab::{Lab, Sandbox, runnable, server::Server, wait_until, wire::Wire};

const SOON: Duration = Duration::from_secs(5);

#[test]
fn every_client_reaches_every_server_through_the_gateways_own_stack() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    for client in [&lab.c1, &lab.c2, &lab.p1] {
        for server in ["203.0.113.10", "192.0.2.10", "2001:db8:a::10", "2001:db8:b::10"] {
            client.ok(&["ping", "-c", "1", "-W", "2", server])?;
        }
    }
    Ok(())
}

#[test]
fn servers_tell_which_address_they_saw() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    let http = Server::http(&lab.api, "203.0.113.10:80".parse()?)?;
    let said = lab.c1.ok(&["curl", "-sS", "--max-time", "5", "http://203.0.113.10/"])?;
    assert_eq!(said.trim(), http.seen()[0].to_string());
    assert_eq!(http.seen()[0].ip().to_string(), "10.0.1.2");

    let udp = Server::udp(&lab.web, "192.0.2.10:53".parse()?)?;
    let said = lab.c2.enter(|| -> Result<String> {
        let socket = std::net::UdpSocket::bind("10.0.2.2:4000")?;
        socket.set_read_timeout(Some(SOON))?;
        socket.send_to(b"who am I", "192.0.2.10:53")?;
        let mut answer = [0; 64];
        let (length, _) = socket.recv_from(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    })??;
    assert_eq!(said, "10.0.2.2:4000");
    assert_eq!(udp.seen().len(), 1);
    Ok(())
}

#[test]
fn a_wire_hears_what_another_sends() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let sandbox = Sandbox::new()?;
    let (one, other) = (sandbox.node("one")?, sandbox.node("other")?);
    sandbox.link((&one, "eth0"), (&other, "eth0"))?;
    let mut frame = vec![0xff; 12];
    frame.extend([0x88, 0xb5]);
    frame.extend([7; 50]);
    let listener = Wire::open(&other, "eth0")?;
    Wire::open(&one, "eth0")?.send(&frame)?;
    assert_eq!(
        listener.expect("frame of an experiment", SOON, |heard| heard[12..14] == [0x88, 0xb5])?,
        frame
    );
    Ok(())
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    let (name, directory) = (lab.sandbox.name().to_owned(), lab.sandbox.dir());
    let mut process = lab.c1.spawn(&["sleep", "600"])?;
    drop(lab);
    assert!(!process.is_running());
    assert!(!directory.exists());
    assert!(!namespaces().iter().any(|namespace| namespace.starts_with(&name)), "{:?}", namespaces());
    Ok(())
}

#[test]
fn nothing_is_left_when_the_owner_of_a_lab_is_killed() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let name = format!("gwkilled{}", std::process::id());
    let mut owner = Command::new(env::current_exe()?)
        .args(["--ignored", "--exact", "owns_a_lab_until_it_is_killed"])
        .env("LAB_TO_OWN", &name)
        .stdout(Stdio::null())
        .spawn()?;
    let mine = || namespaces().into_iter().filter(|namespace| namespace.starts_with(&name)).count();
    let made = wait_until("the lab to be made", SOON, || mine() == 1);
    owner.kill()?;
    owner.wait()?;
    made?;
    wait_until("the lab to be removed", SOON, || mine() == 0)
}

#[test]
#[ignore = "half of another test"]
fn owns_a_lab_until_it_is_killed() -> Result<()> {
    let Ok(name) = env::var("LAB_TO_OWN") else { return Ok(()) };
    let sandbox = Sandbox::named(&name)?;
    let _node = sandbox.node("only")?;
    thread::sleep(Duration::from_mins(1));
    Ok(())
}

fn namespaces() -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
