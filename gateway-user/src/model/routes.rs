//! The routes of a table: a map that shares what is equal with the maps it was made from.
//!
//! A table may have a million routes, and a change of one of them must not cost a walk over all. So a copy costs nothing
//! (`imbl::OrdMap`), two versions are compared where they differ only ([`Routes::diff`]), and what others ask of all
//! routes at once is kept beside them: how many there are of a family, where they lead, and which have selectors.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, ordmap::DiffItem};
use ipnet::IpNet;

use super::{Route, RouteKey, Selector, Target, prefix::is_ipv6};

/// Routes by what they match, in the order of prefix and selector.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    by_key: OrdMap<RouteKey, Arc<Route>>,
    /// Where they lead; no target without routes.
    leading: OrdMap<Target, Leading>,
    /// Those with a selector.
    selective: OrdSet<RouteKey>,
    ipv6: usize,
}

/// The routes that lead to one target.
#[derive(Clone, Debug)]
struct Leading {
    ipv4: usize,
    ipv6: usize,
    /// The one of which nothing else is said. All that are equal to it share it.
    plain: Arc<Route>,
}

/// A route that two versions of a table do not have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference<'a> {
    /// What it matches.
    pub key: &'a RouteKey,
    /// What it does in the first version, if it is there.
    pub before: Option<&'a Route>,
    /// What it does in the second one, if it is there.
    pub after: Option<&'a Route>,
}

impl Routes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// How many there are of a family.
    pub fn count(&self, ipv6: bool) -> usize {
        if ipv6 { self.ipv6 } else { self.len() - self.ipv6 }
    }

    /// The route that matches exactly this.
    pub fn get(&self, key: &RouteKey) -> Option<&Route> {
        self.by_key.get(key).map(|route| &**route)
    }

    /// Whether there is a route that matches exactly this.
    pub fn contains_key(&self, key: &RouteKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&RouteKey, &Route)> {
        self.by_key.iter().map(|(key, route)| (key, &**route))
    }

    /// What they match, in order.
    pub fn keys(&self) -> impl Iterator<Item = &RouteKey> {
        self.by_key.keys()
    }

    /// Routes to prefixes that `outer` contains, itself included, in order.
    pub fn within(&self, outer: IpNet) -> impl Iterator<Item = (&RouteKey, &Route)> {
        // A prefix lies behind those that contain it and before what is behind them.
        let within =
            self.by_key.range(first_of(outer)..).take_while(move |(key, _)| outer.contains(&key.prefix));
        within.map(|(key, route)| (key, &**route))
    }

    /// Routes to exactly `prefix`, in order.
    pub fn of_prefix(&self, prefix: IpNet) -> impl Iterator<Item = (&RouteKey, &Route)> {
        let of_prefix =
            self.by_key.range(first_of(prefix)..).take_while(move |(key, _)| key.prefix == prefix);
        of_prefix.map(|(key, route)| (key, &**route))
    }

    /// Where they lead, each target once.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.leading.keys()
    }

    /// Whether routes of a family lead to `target`.
    pub fn lead_to(&self, target: &Target, ipv6: bool) -> bool {
        self.leading.get(target).is_some_and(|leading| if ipv6 { leading.ipv6 > 0 } else { leading.ipv4 > 0 })
    }

    /// How many there are with selectors.
    pub fn selective(&self) -> usize {
        self.selective.len()
    }

    /// Routes with selectors whose prefix `outer` contains, in order; all of them for `None`.
    pub fn selective_within(&self, outer: Option<IpNet>) -> impl Iterator<Item = &RouteKey> {
        let from =
            outer.map_or(std::ops::Bound::Unbounded, |outer| std::ops::Bound::Included(first_of(outer)));
        let contained = move |key: &&RouteKey| outer.is_none_or(|outer| outer.contains(&key.prefix));
        self.selective.range((from, std::ops::Bound::Unbounded)).take_while(contained)
    }

    /// What is different in `after`, in order. Costs as much as there is, where one was made from the other.
    pub fn diff<'a>(&'a self, after: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        self.by_key.diff(&after.by_key).map(|item| match item {
            DiffItem::Add(key, after) => Difference { key, before: None, after: Some(after) },
            DiffItem::Remove(key, before) => Difference { key, before: Some(before), after: None },
            DiffItem::Update { old: (key, before), new: (_, after) } => {
                Difference { key, before: Some(before), after: Some(after) }
            }
        })
    }

    /// Enters a route; the one that was there is returned.
    pub fn insert(&mut self, key: RouteKey, route: Route) -> Option<Arc<Route>> {
        let route = self.enter(&key, route);
        let before = self.by_key.insert(key, route);
        match &before {
            Some(before) => self.leave(&key, before),
            None => self.ipv6 += usize::from(is_ipv6(&key.prefix)),
        }
        if before.is_none() && !key.selector.is_any() {
            self.selective.insert(key);
        }
        before
    }

    /// Leads packets to these prefixes to `target`, whatever their protocol and port. Routes that lead there already stay
    /// as they are.
    pub fn lead<'a>(&mut self, prefixes: impl IntoIterator<Item = &'a IpNet>, target: &Target) {
        let plain = self.plain(target);
        // Most lists are imported into an empty table, where there is nothing to look for.
        let was_empty = self.is_empty();
        let (mut ipv4, mut ipv6) = (0, 0);
        for prefix in prefixes {
            let key = first_of(*prefix);
            if !was_empty && self.by_key.get(&key).is_some_and(|route| route.target == *target) {
                continue;
            }
            let before = self.by_key.insert(key, plain.clone());
            let count = if is_ipv6(prefix) { &mut ipv6 } else { &mut ipv4 };
            *count += 1;
            match before {
                // The same prefix once more.
                Some(before) if Arc::ptr_eq(&before, &plain) => *count -= 1,
                Some(before) => self.leave(&key, &before),
                None => self.ipv6 += usize::from(is_ipv6(prefix)),
            }
        }
        if let Some(leading) = self.leading.get_mut(target) {
            leading.ipv4 += ipv4;
            leading.ipv6 += ipv6;
            if leading.ipv4 + leading.ipv6 == 0 {
                self.leading.remove(target);
            }
        }
    }

    /// Takes a route away and returns it.
    pub fn remove(&mut self, key: &RouteKey) -> Option<Arc<Route>> {
        let before = self.by_key.remove(key)?;
        self.leave(key, &before);
        self.ipv6 -= usize::from(is_ipv6(&key.prefix));
        if !key.selector.is_any() {
            self.selective.remove(key);
        }
        Some(before)
    }

    /// Takes all routes away.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes the routes away for which `keep` does not hold.
    pub fn retain(&mut self, mut keep: impl FnMut(&RouteKey, &Route) -> bool) {
        let gone: Vec<RouteKey> =
            self.iter().filter(|(key, route)| !keep(key, route)).map(|(key, _)| *key).collect();
        for key in &gone {
            self.remove(key);
        }
    }

    /// The same routes, sharing what is equal with `other`: the two are compared fast from then on.
    pub fn sharing_with(self, other: &Self) -> Self {
        let mut shared = other.clone();
        for Difference { key, after, .. } in other.diff(&self) {
            match after {
                Some(route) => drop(shared.insert(*key, route.clone())),
                None => drop(shared.remove(key)),
            }
        }
        shared
    }

    /// Counts a route with its target. Returns what to enter.
    fn enter(&mut self, key: &RouteKey, route: Route) -> Arc<Route> {
        self.plain(&route.target);
        let Some(leading) = self.leading.get_mut(&route.target) else { return Arc::new(route) };
        let count = if is_ipv6(&key.prefix) { &mut leading.ipv6 } else { &mut leading.ipv4 };
        *count += 1;
        if route == *leading.plain { leading.plain.clone() } else { Arc::new(route) }
    }

    /// The route to `target` of which nothing else is said. The target is among those that routes lead to from then on.
    fn plain(&mut self, target: &Target) -> Arc<Route> {
        if let Some(leading) = self.leading.get(target) {
            return leading.plain.clone();
        }
        let plain = Arc::new(Route { target: target.clone(), log: false, comment: None });
        let leading = Leading { ipv4: 0, ipv6: 0, plain: plain.clone() };
        self.leading.insert(target.clone(), leading);
        plain
    }

    /// Takes a route from the count of its target.
    fn leave(&mut self, key: &RouteKey, route: &Route) {
        let Some(leading) = self.leading.get_mut(&route.target) else { return };
        let count = if is_ipv6(&key.prefix) { &mut leading.ipv6 } else { &mut leading.ipv4 };
        *count -= 1;
        if leading.ipv4 + leading.ipv6 == 0 {
            self.leading.remove(&route.target);
        }
    }
}

/// What comes first of the routes to `prefix`.
fn first_of(prefix: IpNet) -> RouteKey {
    RouteKey { prefix, selector: Selector::default() }
}

impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.by_key.diff(&other.by_key).next().is_none()
    }
}

impl Eq for Routes {}

impl Extend<(RouteKey, Route)> for Routes {
    fn extend<T: IntoIterator<Item = (RouteKey, Route)>>(&mut self, routes: T) {
        for (key, route) in routes {
            self.insert(key, route);
        }
    }
}

impl FromIterator<(RouteKey, Route)> for Routes {
    fn from_iter<T: IntoIterator<Item = (RouteKey, Route)>>(routes: T) -> Self {
        let mut all = Self::default();
        all.extend(routes);
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::model::Proto;

    fn key() -> impl Strategy<Value = RouteKey> {
        let prefix = prop_oneof![
            (0u32..8, 0u8..=4).prop_map(|(bits, length)| {
                let net = ipnet::Ipv4Net::new((bits << 29).into(), length).expect("a length");
                IpNet::V4(net.trunc())
            }),
            (0u128..4, 0u8..=2).prop_map(|(bits, length)| {
                let net = ipnet::Ipv6Net::new((bits << 126).into(), length).expect("a length");
                IpNet::V6(net.trunc())
            }),
        ];
        let proto = prop_oneof![Just(None), Just(Some(Proto::Tcp)), Just(Some(Proto::Udp))];
        (prefix, proto)
            .prop_map(|(prefix, proto)| RouteKey { prefix, selector: Selector { proto, dport: None } })
    }

    fn route() -> impl Strategy<Value = Route> {
        let target =
            prop_oneof![Just(Target::Direct), Just(Target::Eip), Just(Target::Pool("nat".to_owned()))];
        let comment = prop_oneof![3 => Just(None), 1 => Just(Some("ours".to_owned()))];
        (target, comment).prop_map(|(target, comment)| Route { target, log: false, comment })
    }

    fn steps() -> impl Strategy<Value = Vec<(RouteKey, Option<Route>)>> {
        vec((key(), proptest::option::of(route())), 0..60)
    }

    /// Does the same to both.
    fn follow(
        routes: &mut Routes,
        model: &mut BTreeMap<RouteKey, Route>,
        steps: &[(RouteKey, Option<Route>)],
    ) {
        for (key, route) in steps {
            let (before, expected) = match route {
                Some(route) => (routes.insert(*key, route.clone()), model.insert(*key, route.clone())),
                None => (routes.remove(key), model.remove(key)),
            };
            assert_eq!(before.as_deref(), expected.as_ref());
        }
    }

    proptest! {
        #[test]
        fn many_prefixes_that_are_led_to_a_target_are_as_if_each_was(
            steps in steps(),
            prefixes in vec(key().prop_map(|key| key.prefix), 0..20),
            target in prop_oneof![Just(Target::Direct), Just(Target::Eip), Just(Target::Blackhole)],
        ) {
            let mut routes = Routes::default();
            follow(&mut routes, &mut BTreeMap::new(), &steps);
            let mut expected = routes.clone();
            for prefix in &prefixes {
                if expected.get(&first_of(*prefix)).is_none_or(|route| route.target != target) {
                    expected.insert(first_of(*prefix), Route { target: target.clone(), log: false, comment: None });
                }
            }
            routes.lead(&prefixes, &target);
            prop_assert_eq!(&routes, &expected);
            prop_assert_eq!(routes.count(true), expected.count(true));
            prop_assert_eq!(routes.targets().collect::<Vec<_>>(), expected.targets().collect::<Vec<_>>());
            for ipv6 in [false, true] {
                prop_assert_eq!(routes.lead_to(&target, ipv6), expected.lead_to(&target, ipv6));
            }
        }

        #[test]
        fn what_is_kept_beside_the_routes_is_what_a_walk_would_find(steps in steps(), outer in key()) {
            let (mut routes, mut model) = (Routes::default(), BTreeMap::new());
            follow(&mut routes, &mut model, &steps);
            let outer = outer.prefix;
            prop_assert!(routes.iter().eq(model.iter()));
            prop_assert!(routes.within(outer).eq(model.iter().filter(|(key, _)| outer.contains(&key.prefix))));
            prop_assert!(routes.of_prefix(outer).eq(model.iter().filter(|(key, _)| outer == key.prefix)));
            let selective = || model.keys().filter(|key| !key.selector.is_any());
            prop_assert!(routes.selective_within(None).eq(selective()));
            let inner = selective().filter(|key| outer.contains(&key.prefix));
            prop_assert!(routes.selective_within(Some(outer)).eq(inner));
            prop_assert_eq!(routes.selective(), selective().count());
            for ipv6 in [false, true] {
                let of_family = || model.iter().filter(|(key, _)| is_ipv6(&key.prefix) == ipv6);
                prop_assert_eq!(routes.count(ipv6), of_family().count());
                for target in [Target::Direct, Target::Eip, Target::Pool("nat".to_owned())] {
                    let lead = of_family().any(|(_, route)| route.target == target);
                    prop_assert_eq!(routes.lead_to(&target, ipv6), lead);
                    let there = model.values().any(|route| route.target == target);
                    prop_assert_eq!(routes.targets().any(|known| *known == target), there);
                }
            }
        }

        #[test]
        fn versions_differ_in_what_was_changed(first in steps(), then in steps(), others in steps()) {
            let (mut before, mut model_before) = (Routes::default(), BTreeMap::new());
            follow(&mut before, &mut model_before, &first);
            let (mut after, mut model_after) = (before.clone(), model_before.clone());
            follow(&mut after, &mut model_after, &then);
            let (mut stranger, mut model_stranger) = (Routes::default(), BTreeMap::new());
            follow(&mut stranger, &mut model_stranger, &others);
            for (other, model) in [(&after, &model_after), (&stranger, &model_stranger)] {
                let mut rebuilt = before.clone();
                for Difference { key, before: was, after } in before.diff(other) {
                    prop_assert_eq!(was, model_before.get(key));
                    prop_assert_eq!(after, model.get(key));
                    prop_assert_ne!(was, after);
                    match after {
                        Some(route) => drop(rebuilt.insert(*key, route.clone())),
                        None => drop(rebuilt.remove(key)),
                    }
                }
                prop_assert!(rebuilt.iter().eq(model.iter()));
                prop_assert_eq!(&rebuilt, other);
                prop_assert_eq!(&before == other, model_before == *model);
                prop_assert_eq!(&other.clone().sharing_with(&before), other);
            }
        }
    }

    #[test]
    fn equal_routes_are_stored_once() {
        let net = |last: u8| IpNet::from(std::net::IpAddr::from([192, 0, 2, last]));
        let route = |comment: Option<&str>| Route {
            target: Target::Pool("nat".to_owned()),
            log: false,
            comment: comment.map(str::to_owned),
        };
        let routes: Routes = [(first_of(net(1)), route(None)), (first_of(net(2)), route(None))]
            .into_iter()
            .chain([(first_of(net(3)), route(Some("ours")))])
            .collect();
        let stored: Vec<_> = routes.by_key.values().collect();
        assert!(Arc::ptr_eq(stored[0], stored[1]));
        assert!(!Arc::ptr_eq(stored[0], stored[2]));
    }
}
