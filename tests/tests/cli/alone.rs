//! `gwctl` without a daemon, or with something else in its place.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::unistd::geteuid;

use crate::support::{finish, gwctl, run};

const NOWHERE: &str = "/nonexistent/gateway.sock";

#[test]
fn an_absent_daemon_is_named_with_its_socket_and_how_to_start_it() -> Result<()> {
    for line in ["status", "route add default via direct", "session count", "export"] {
        let said = run(Path::new(NOWHERE), line)?;
        assert_eq!(said.code, 3, "{line}: {said:?}");
        assert_eq!(said.out, "");
        let begin = format!(
            "error: gatewayd does not answer on {NOWHERE}: no such file or directory\nhint: start it"
        );
        assert!(said.err.starts_with(&begin), "{said:?}");
    }
    Ok(())
}

#[test]
fn a_socket_that_nobody_listens_on_is_an_absent_daemon() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("left.sock");
    drop(UnixListener::bind(&socket)?);
    let said = run(&socket, "status")?;
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.contains("connection refused"), "{said:?}");
    Ok(())
}

#[test]
fn the_flag_beats_the_environment() -> Result<()> {
    let said = run(Path::new("/nonexistent/other.sock"), &format!("--socket {NOWHERE} status"))?;
    assert!(said.err.contains(NOWHERE), "{said:?}");
    Ok(())
}

#[test]
fn a_socket_that_the_user_may_not_open_is_exit_code_6() -> Result<()> {
    if !geteuid().is_root() {
        gateway_lab::skip("needs root, to become another user");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let socket = directory.path().join("gateway.sock");
    let _listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660))?;
    // The other user need not be able to reach the build directory. A copy made by this process could be held
    // open for writing by a child of another test, and not be executable then.
    let program = directory.path().join("gwctl");
    let copied =
        std::process::Command::new("cp").arg(gateway_lab::program("gwctl")?).arg(&program).status()?;
    assert!(copied.success());
    let mut command = std::process::Command::new(program);
    command.args(["--socket".as_ref(), socket.as_os_str(), "status".as_ref()]).uid(65_534).gid(65_534);
    let said = finish(&mut command)?;
    assert_eq!(said.code, 6, "{said:?}");
    assert!(said.err.starts_with("error: permission denied on "), "{said:?}");
    assert!(said.err.contains("hint: run the command as root"), "{said:?}");
    Ok(())
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for_forever() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("silent.sock");
    let _listener = UnixListener::bind(&socket)?;
    let begin = Instant::now();
    let said = run(&socket, "--timeout 200ms activate")?;
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(said.code, 3, "{said:?}");
    assert!(said.err.starts_with("error: gatewayd did not answer within 200ms on "), "{said:?}");
    assert!(said.err.contains("hint: a change that was asked for may still be made"), "{said:?}");
    Ok(())
}

#[test]
fn something_that_is_not_the_daemon_is_told_apart() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("other.sock");
    let listener = UnixListener::bind(&socket)?;
    let answering = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        Ok(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")?)
    });
    let said = run(&socket, "route show")?;
    answering.join().ok().context("the other program failed")??;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.starts_with("error: gatewayd's answer makes no sense: "), "{said:?}");
    Ok(())
}

#[test]
fn a_line_that_makes_no_sense_is_exit_code_2_and_says_nothing_on_standard_output() -> Result<()> {
    for line in ["", "route", "bogus", "s", "route add default", "limit shwo", "apply x"] {
        let said = run(Path::new(NOWHERE), line)?;
        let expected = if line == "route" { 3 } else { 2 };
        assert_eq!((said.code, said.out.as_str()), (expected, ""), "{line}: {said:?}");
        assert!(said.err.contains("error: ") && said.err.contains("hint: "), "{line}: {said:?}");
    }
    Ok(())
}

#[test]
fn quiet_leaves_the_exit_code_alone_to_tell() -> Result<()> {
    for line in ["-q status", "status --quiet", "-q bogus"] {
        let said = run(Path::new(NOWHERE), line)?;
        assert_eq!((said.out.as_str(), said.err.as_str()), ("", ""), "{line}");
        assert_ne!(said.code, 0);
    }
    Ok(())
}

#[test]
fn colour_is_for_terminals_unless_it_is_asked_for() -> Result<()> {
    let escape = '\u{1b}';
    assert!(!run(Path::new(NOWHERE), "status")?.err.contains(escape));
    assert!(run(Path::new(NOWHERE), "--color always status")?.err.contains(escape));
    assert!(run(Path::new(NOWHERE), "bogus --color=always")?.err.contains(escape));
    let no_color = finish(gwctl(Path::new(NOWHERE))?.env("NO_COLOR", "1").args(["--color", "always", "-h"]))?;
    assert!(no_color.out.contains(escape), "what is asked for on the line wins");
    Ok(())
}

#[test]
fn help_and_version_need_no_daemon() -> Result<()> {
    let help = run(Path::new(NOWHERE), "--help")?;
    assert_eq!((help.code, help.err.as_str()), (0, ""));
    assert!(help.out.contains("Examples\n  gwctl interface add"));
    let version = run(Path::new(NOWHERE), "--version")?;
    assert_eq!((version.code, version.out), (0, format!("gwctl {}\n", env!("CARGO_PKG_VERSION"))));
    let versions = run(Path::new(NOWHERE), "version")?;
    assert_eq!(versions.code, 0);
    assert!(versions.out.starts_with("PROGRAM  VERSION  ABI\ngwctl "), "{versions:?}");
    assert!(versions.err.starts_with("note: gatewayd does not answer"), "{versions:?}");
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() -> Result<()> {
    let mut child = gwctl(Path::new(NOWHERE))?
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("gwctl does not start")?;
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().context("standard error")?.read_to_string(&mut err)?;
    assert_eq!((child.wait()?.code(), err.as_str()), (Some(0), ""));
    Ok(())
}

#[test]
fn a_completion_script_is_what_its_shell_can_read() -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(Path::new(NOWHERE), &format!("completion {shell}"))?;
        assert_eq!(script.code, 0);
        let mut check = std::process::Command::new(shell);
        match check.args(["-n", "-c", &script.out]).stdin(Stdio::null()).status() {
            Ok(status) => assert!(status.success(), "{shell} cannot read its script"),
            Err(_) => eprintln!("{shell} is not installed: its script was not read"),
        }
    }
    Ok(())
}

#[test]
fn completion_knows_nouns_verbs_keywords_and_values() -> Result<()> {
    let next = |words: &[&str]| -> Result<String> {
        let said = finish(gwctl(Path::new(NOWHERE))?.arg("__complete").args(words))?;
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{words:?}");
        let words = said.out.lines().filter_map(|line| line.split('\t').next());
        Ok(words.collect::<Vec<_>>().join(" "))
    };
    assert_eq!(next(&["s"])?, "session status stats");
    assert_eq!(next(&["r", ""])?, "add replace del show get import flush");
    assert_eq!(next(&["route", "add", "default", ""])?, "via table proto dport log comment");
    assert_eq!(next(&["route", "add", "default", "via", "p"])?, "pool proxy prohibit");
    assert_eq!(next(&["route", "add", "default", "via", "direct", "log", ""])?, "table proto dport comment");
    assert_eq!(next(&["route", "add", "default", "proto", ""])?, "tcp udp icmp");
    assert_eq!(next(&["pool", "add", ""])?, "");
    assert_eq!(next(&["status", "--b"])?, "--brief");
    assert_eq!(next(&["route", "add", "default", "via", "pool", ""])?, "", "there is no daemon to ask");
    Ok(())
}

#[test]
fn explain_reads_a_configuration_file_without_a_daemon() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("gateway.toml");
    fs::write(
        &file,
        "[gateway]\nstate = \"active\"\n[[interface]]\nname = \"eth1\"\nrole = \"inside\"\n\
         [[table]]\nname = \"main\"\nroutes = [{ to = \"203.0.113.0/24\", via = \"direct\" }]\n",
    )?;
    let line = format!("explain 203.0.113.7:443 from 10.0.1.2 --config {} --exit-verdict", file.display());
    let said = run(Path::new(NOWHERE), &line)?;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    assert!(said.out.contains("route             203.0.113.0/24 via direct"), "{said:?}");
    let said = run(Path::new(NOWHERE), &line.replace("203.0.113.7", "192.0.2.7"))?;
    assert_eq!(said.code, 20, "{said:?}");
    fs::write(&file, "[gateway]\nstate = \"sleeping\"\n")?;
    let said = run(Path::new(NOWHERE), &line)?;
    assert_eq!(said.code, 7, "{said:?}");
    Ok(())
}
