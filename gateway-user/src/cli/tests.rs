//! The grammar: words, flags, abbreviations, and what is said about lines that make no sense.

use clap::FromArgMatches;
use insta::assert_snapshot;
use rstest::rstest;

use super::{Cli, Failure, Noun, Terminal, command, parse, words};

/// What a command line means.
fn meaning(line: &[&str]) -> Result<Cli, (u8, String)> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut terminal = Terminal {
        out: &mut out,
        err: &mut err,
        out_is_terminal: false,
        err_is_terminal: false,
        in_is_terminal: false,
    };
    let words: Vec<String> = line.iter().map(|&word| word.to_owned()).collect();
    match parse(&words, &mut terminal) {
        Ok(Some(cli)) => Ok(cli),
        Ok(None) => Err((0, String::from_utf8_lossy(&out).into_owned())),
        Err(Failure::Told { exit, message, hint }) => {
            let hint = hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
            Err((exit, format!("error: {message}{hint}")))
        }
        Err(Failure::ReaderGone) => unreachable!("nobody reads"),
    }
}

fn noun(line: &[&str]) -> String {
    format!("{:?}", meaning(line).map(|cli| cli.noun))
}

/// A line of words without spaces in them.
fn line(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// What is said about lines that make no sense.
fn complaints(lines: &[&str]) -> String {
    let complain = |words: &&str| {
        let (exit, text) = meaning(&line(words)).expect_err(words);
        format!("$ gwctl {words}\n{text}\n[{exit}]\n")
    };
    lines.iter().map(complain).collect::<Vec<_>>().join("\n")
}

#[rstest]
#[case(&["route", "add", "203.0.113.0/24", "via", "pool", "nat"])]
#[case(&["route", "add", "via", "pool", "nat", "203.0.113.0/24"])]
#[case(&["route", "add", "203.0.113.0/24", "via", "pool nat"])]
#[case(&["route", "add", "203.0.113.0/24", "--via", "pool nat"])]
#[case(&["route", "add", "203.0.113.0/24", "--via=pool nat"])]
#[case(&["route", "add", "--via", "pool", "nat", "203.0.113.0/24"])]
#[case(&["r", "a", "203.0.113.0/24", "via", "pool", "nat"])]
#[case(&["--json", "route", "--timeout", "1s", "add", "-v", "203.0.113.0/24", "via", "pool", "nat"])]
fn words_and_flags_mean_the_same_in_any_order(#[case] words: &[&str]) {
    let expected = r#"Ok(Route(Add(Full { prefix: "203.0.113.0/24", via: "pool nat", table: None, proto: None, dport: None, log: false, comment: None })))"#;
    assert_eq!(noun(words), expected);
}

#[rstest]
#[case("direct", "direct")]
#[case("pool nat", "pool nat")]
#[case("gateway 198.51.100.1", "gateway 198.51.100.1")]
#[case("gateway 198.51.100.1 dev eth0", "gateway 198.51.100.1 dev eth0")]
#[case("blackhole", "blackhole")]
#[case("prohibit", "prohibit")]
#[case("host", "host")]
#[case("eip", "eip")]
#[case("proxy squid", "proxy squid")]
fn a_target_takes_its_words_and_leaves_the_rest(#[case] target: &str, #[case] via: &str) {
    let words = format!("route replace default via {target} table t proto tcp dport 80-90 log comment x");
    let Ok(Cli { noun: Noun::Route(route), .. }) = meaning(&line(&words)) else { panic!("{words}") };
    let expected = format!(
        r#"Replace(Full {{ prefix: "default", via: "{via}", table: Some("t"), proto: Some("tcp"), dport: Some("80-90"), log: true, comment: Some("x") }})"#
    );
    assert_eq!(format!("{route:?}"), expected);
}

#[test]
fn every_form_of_every_command_is_read() {
    let lines = "
        route del 203.0.113.0/24 table t proto udp dport 53
        route delete 203.0.113.0/24
        route show
        route
        route show 203.0.113.0/24
        route show in 203.0.113.0/24 table t --counters
        route show for 203.0.113.7
        route get 203.0.113.7 from 10.0.1.2 proto tcp dport 443
        route import routes.txt via pool nat table t --prune
        route import - via gateway 10.0.1.2 dev eth1
        route flush table t
        table add servers kind egress
        table del servers
        table show
        table show servers
        table show --counters
        table bind servers from 10.0.2.0/24 iif eth1
        table unbind servers from 10.0.2.0/24
        pool add nat address 198.51.100.10,198.51.100.11 ports 1024-65535
        pool set nat ports 2000-3000
        pool add calls address 198.51.100.20 mapping endpoint-independent
        pool set calls mapping endpoint-dependent
        pool set nat mss 1360
        pool set nat refuse icmp
        pool del nat
        pool show nat
        proxy add squid host 10.0.1.2,10.0.1.3 check tcp:3128 interval 500ms fail pool nat
        proxy add tunnel host 10.0.1.2 mode vxlan vni 7 check icmp fail direct
        proxy set squid fail proxy other
        proxy set squid host 10.0.1.2
        proxy drain squid host 10.0.1.2
        proxy undrain squid host 10.0.1.2
        proxy del squid
        proxy show squid
        proxy
        eip add 198.51.100.50 host 10.0.0.2
        eip del 198.51.100.50
        eip show
        eip
        limit add tenant-a from 10.0.7.0/24 per prefix rate 200 burst 50 concurrent 1000
        limit set tenant-a rate 0 concurrent 0
        limit del tenant-a
        limit show tenant-a
        limit
        group add payments prefix 10.1.0.0/16,2001:db8:1::/48
        group set payments prefix 10.1.0.0/16
        group del payments
        group show payments
        group
        interface add eth1 role inside mode native
        interface del eth1
        interface
        activate
        deactivate
        status --brief
        stats
        stats drops --watch
        stats drops --watch=0.5 --all
        stats routes table t
        stats pools
        stats interfaces
        stats usage
        stats usage since 1h --csv
        stats usage --since=30days --watch
        stats maps
        session show from 10.0.0.0/8 to 203.0.113.7 proto tcp dport 443 pool nat proxy squid state established sort bytes limit 10
        session count by destination proto udp
        export
        completion zsh
        version
    ";
    let read: Vec<String> = lines
        .lines()
        .map(str::trim)
        .filter(|words| !words.is_empty())
        .map(|words| {
            let noun =
                meaning(&line(words)).unwrap_or_else(|complaint| panic!("{words}: {complaint:?}")).noun;
            format!("{words}\n    {noun:?}")
        })
        .collect();
    assert_snapshot!(read.join("\n"));
}

#[test]
fn a_name_may_be_a_keyword() {
    assert_eq!(
        noun(&line("pool add address address 198.51.100.10")),
        r#"Ok(Pool(Add(Add { name: "address", address: ["198.51.100.10"], ports: None, mapping: None, mss: None, refuse: None, limits: Limits { rate: None, burst: None, concurrent: None } })))"#
    );
    assert_eq!(
        noun(&line("table bind from from 10.0.0.0/8")),
        r#"Ok(Table(Bind(Binding { name: "from", from: "10.0.0.0/8", iif: None })))"#
    );
}

#[test]
fn a_value_may_be_a_keyword_or_look_like_a_flag() {
    let Ok(Cli { noun: Noun::Route(route), .. }) =
        meaning(&["route", "add", "default", "via", "pool", "log", "comment", "--see the log"])
    else {
        panic!("not read")
    };
    assert_eq!(
        format!("{route:?}"),
        r#"Add(Full { prefix: "default", via: "pool log", table: None, proto: None, dport: None, log: false, comment: Some("--see the log") })"#
    );
}

#[test]
fn an_ambiguous_abbreviation_lists_what_it_may_be() {
    assert_snapshot!(complaints(&["s", "stat",]));
    // `stats` is a verb of its own and no abbreviation.
    assert!(noun(&["stats"]).starts_with("Ok(Stats"));
}

#[test]
fn an_unknown_word_is_named_with_what_it_may_have_been_meant_to_be() {
    assert_snapshot!(complaints(&[
        "route aad default via direct",
        "route dele default",
        "rotue",
        "limit add tenant form 10.0.7.0/24",
        "proxy add squid hots 10.0.1.2",
        "eip add 198.51.100.50 hots 10.0.0.2",
        "route improt routes.txt via direct",
        "route add default vai direct",
        "route add default via direct domain example.com",
        "activate now",
        "status --breif",
    ]));
}

#[test]
fn what_is_missing_is_named() {
    assert_snapshot!(complaints(&[
        "route add",
        "route add default",
        "route add default via",
        "route add default via pool",
        "route add default via gateway",
        "route add default via gateway 198.51.100.1 dev",
        "route flush",
        "pool add nat",
        "eip add 198.51.100.50",
        "limit add tenant-a",
        "proxy add squid",
        "proxy set squid fail pool",
        "completion",
        "table bind servers",
    ]));
}

#[test]
fn words_that_exclude_each_other_are_named() {
    assert_snapshot!(complaints(&[
        "route show 10.0.0.0/8 in 10.0.0.0/8",
        "route add default via direct via host",
        "-q -v status",
    ]));
}

#[test]
fn a_value_that_cannot_be_is_named() {
    assert_snapshot!(complaints(&[
        "route get 203.0.113.7 dport 99999",
        "session show limit some",
        "stats drops --watch=0",
        "--timeout 5 status",
        "--color blue status",
        "completion tcsh",
    ]));
}

#[rstest]
#[case("--help")]
#[case("help")]
fn help_of_the_program_has_examples_first(#[case] words: &str) {
    let (exit, text) = meaning(&line(words)).expect_err(words);
    assert_eq!(exit, 0);
    insta::allow_duplicates! { assert_snapshot!("help", text); }
}

#[rstest]
#[case("route add --help")]
#[case("r a default via direct -h")]
#[case("help route add")]
#[case("route help add")]
fn help_of_a_verb_is_there_in_every_place(#[case] words: &str) {
    let (exit, text) = meaning(&line(words)).expect_err(words);
    assert_eq!(exit, 0);
    insta::allow_duplicates! { assert_snapshot!("help_route_add", text); }
}

#[test]
fn every_example_of_the_help_is_a_command_that_is_read() {
    let mut commands = vec![command()];
    let mut examples = 0;
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let Some(text) = command.get_after_help() else {
            assert!(command.has_subcommands(), "`{}` has no example", command.get_name());
            continue;
        };
        for example in text.to_string().lines().filter_map(|line| line.strip_prefix("gwctl ")) {
            let example = example.split(" > ").next().unwrap_or_default();
            // A comment of several words is the only quoted value there is.
            let words: Vec<String> = example
                .split('"')
                .enumerate()
                .flat_map(|(number, part)| match number % 2 {
                    0 => part.split_whitespace().map(str::to_owned).collect(),
                    _ => vec![part.to_owned()],
                })
                .collect();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            assert!(meaning(&words).is_ok(), "{example}: {:?}", meaning(&words).err());
            examples += 1;
        }
    }
    assert!(examples > 30, "{examples} examples");
}

#[test]
fn clap_accepts_the_tree_of_commands() {
    command().debug_assert();
}

#[test]
fn the_short_names_of_the_contract_are_not_ambiguous() {
    for (short, long) in
        [("r", "route"), ("ta", "table"), ("po", "pool"), ("pr", "proxy"), ("i", "interface")]
    {
        let words = [short.to_owned(), "show".to_owned()];
        let Ok(words::Line::Run { path, words }) = words::read(&command(), &words) else { panic!("{short}") };
        assert_eq!(path, [long, "show"]);
        let matches = command().try_get_matches_from(std::iter::once("gwctl".to_owned()).chain(words));
        assert!(Cli::from_arg_matches(&matches.expect(short)).is_ok());
    }
}
