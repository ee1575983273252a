//! Environments as the wire has them: what is to be made, and what is held.

use std::num::NonZeroUsize;
use std::time::Duration;

use blkpilot_env::Autoreset;
use blkpilot_env::sim::Generator;
use blkpilot_proto::v1;

use super::filter::Filter;
use super::span::span_from_wire;
use crate::environments::{Access, Held, Kind, Recipe};
use crate::wire;
use crate::wire::names::{self, environment_name, host_name};
use crate::wire::status::Failure;

const DEFAULT_LEASE: Duration = Duration::from_secs(600);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3600);
/// Environments in one resource.
const MOST_TOGETHER: u32 = 1024;
/// What a filter may ask for.
const FILTER_FIELDS: [&str; 7] = [
    "kind",
    "name",
    "autoreset",
    "count",
    "preset",
    "host",
    "access",
];

/// What is to be made.
///
/// # Errors
/// A violation of the field that is wrong.
pub(crate) fn recipe(environment: v1::Environment) -> Result<Recipe, Failure> {
    use v1::environment::Kind as Wire;
    let kind = match environment.kind {
        Some(Wire::CartPole(_)) => Kind::CartPole,
        Some(Wire::SimHost(host)) => sim_host(host)?,
        Some(Wire::ManagedHost(host)) => {
            let [name] = names::parse("environment.managed_host.host", &host.host, "hosts/*")?;
            let field = "environment.managed_host.force_reason";
            let force_reason = wire::force_reason_from_wire(field, &host.force_reason)?;
            Kind::Host {
                name: name.to_owned(),
                access: access(host.access, force_reason)?,
            }
        }
        None => {
            let problem = "is missing: give sim_host, cart_pole or managed_host";
            return Err(Failure::field("environment.kind", problem));
        }
    };
    let autoreset = match environment.autoreset {
        0 => Autoreset::Disabled,
        given => wire::autoreset_from_wire("environment.autoreset", given)?,
    };
    Ok(Recipe {
        count: count(&kind, environment.count)?,
        kind,
        seed: environment.seed,
        autoreset,
        lease: lease("environment.lease_duration", environment.lease_duration)?
            .unwrap_or(DEFAULT_LEASE),
    })
}

fn sim_host(host: v1::SimHost) -> Result<Kind, Failure> {
    use v1::sim_host::Scenario as Wire;
    match host.scenario {
        Some(Wire::Preset(name)) => Ok(Kind::Preset(name)),
        Some(Wire::ScenarioToml(text)) => Ok(Kind::Scenario(text)),
        Some(Wire::Generator(generator)) => Ok(Kind::Generated(self::generator(&generator))),
        None => {
            let problem = "is missing: give preset, scenario_toml or generator";
            Err(Failure::field("environment.sim_host.scenario", problem))
        }
    }
}

fn generator(wire: &v1::sim_host::Generator) -> Generator {
    let default = Generator::default();
    let range = |range: Option<v1::sim_host::CountRange>, default| {
        range.map_or(default, |r| (r.low as usize, r.high as usize))
    };
    Generator {
        disks: range(wire.disks, default.disks),
        channels: range(wire.channels, default.channels),
        devices: range(wire.devices, default.devices),
        steps: if wire.steps == 0 {
            default.steps
        } else {
            wire.steps
        },
        schedulers: wire.schedulers,
        known_work: wire.known_work,
        templates: wire.templates.clone(),
        template_share: wire.template_share,
        template_spread: if wire.template_spread == 0.0 {
            default.template_spread
        } else {
            wire.template_spread
        },
        ..default
    }
}

fn access(wire: i32, force_reason: Option<String>) -> Result<Access, Failure> {
    let field = "environment.managed_host.access";
    match v1::HostAccess::try_from(wire) {
        Ok(v1::HostAccess::Unspecified | v1::HostAccess::Exclusive) => {
            Ok(Access::Exclusive { force_reason })
        }
        Ok(v1::HostAccess::Observer) if force_reason.is_none() => Ok(Access::Observer),
        Ok(v1::HostAccess::Observer) => Err(Failure::field(
            "environment.managed_host.force_reason",
            "stands beside access = HOST_ACCESS_OBSERVER, which does nothing to force",
        )),
        Err(_) => {
            let problem = format!("{wire} is not a value of this enum");
            Err(Failure::field(field, problem))
        }
    }
}

fn count(kind: &Kind, wire: u32) -> Result<NonZeroUsize, Failure> {
    let field = "environment.count";
    let count = NonZeroUsize::new(wire as usize).unwrap_or(NonZeroUsize::MIN);
    if wire > MOST_TOGETHER {
        let problem = format!("{wire} must be at most {MOST_TOGETHER}");
        return Err(Failure::field(field, problem));
    }
    if count > NonZeroUsize::MIN && matches!(kind, Kind::Host { .. }) {
        let problem = format!("{wire} must be 1: there is one of a managed host");
        return Err(Failure::field(field, problem));
    }
    Ok(count)
}

/// A lease; `None` if none is given.
///
/// # Errors
/// A violation of `field` outside its range.
pub(crate) fn lease(
    field: &str,
    wire: Option<prost_types::Duration>,
) -> Result<Option<Duration>, Failure> {
    let Some(wire) = wire else {
        return Ok(None);
    };
    let problem = match span_from_wire(wire) {
        Some(lease) if (Duration::from_secs(1)..=LONGEST_LEASE).contains(&lease) => {
            return Ok(Some(lease));
        }
        Some(lease) => format!("{lease:?} must be in [1s, 24h]"),
        None => "is negative and must be in [1s, 24h]".to_owned(),
    };
    Err(Failure::field(field, problem))
}

/// An environment that is held.
pub(crate) fn to_wire(held: &Held) -> v1::Environment {
    v1::Environment {
        create_time: Some(held.created.into()),
        expire_time: Some(held.lease_end().into()),
        ..describe(&held.recipe, environment_name(&held.id))
    }
}

/// Which environments a list shall have.
///
/// # Errors
/// A violation of `filter`.
pub(crate) fn filter(text: &str) -> Result<impl Fn(&Held) -> bool + use<>, Failure> {
    let filter = Filter::parse(text, &FILTER_FIELDS)?;
    Ok(move |held: &Held| filter.admits(|field| field_of(held, field)))
}

fn field_of(held: &Held, field: &str) -> String {
    let recipe = &held.recipe;
    let kind = match &recipe.kind {
        Kind::CartPole => "cart_pole",
        Kind::Host { .. } => "managed_host",
        Kind::Preset(_) | Kind::Scenario(_) | Kind::Generated(_) => "sim_host",
    };
    match (field, &recipe.kind) {
        ("kind", _) => kind.to_owned(),
        ("name", _) => environment_name(&held.id),
        ("autoreset", _) => wire::autoreset_to_wire(recipe.autoreset)
            .as_str_name()
            .to_owned(),
        ("count", _) => recipe.count.to_string(),
        ("preset", Kind::Preset(preset)) => preset.clone(),
        ("host", Kind::Host { name, .. }) => host_name(name),
        ("access", Kind::Host { access, .. }) => access_to_wire(access).as_str_name().to_owned(),
        _ => String::new(),
    }
}

fn access_to_wire(access: &Access) -> v1::HostAccess {
    match access {
        Access::Exclusive { .. } => v1::HostAccess::Exclusive,
        Access::Observer => v1::HostAccess::Observer,
    }
}

/// What a recipe makes, under a name.
pub(crate) fn describe(recipe: &Recipe, name: String) -> v1::Environment {
    use v1::environment::Kind as Wire;
    use v1::sim_host::Scenario;
    let sim = |scenario| {
        Wire::SimHost(v1::SimHost {
            scenario: Some(scenario),
        })
    };
    let kind = match &recipe.kind {
        Kind::CartPole => Wire::CartPole(v1::CartPole {}),
        Kind::Host { name, access } => Wire::ManagedHost(v1::ManagedHost {
            host: host_name(name),
            force_reason: match access {
                Access::Exclusive { force_reason } => force_reason.clone().unwrap_or_default(),
                Access::Observer => String::new(),
            },
            access: access_to_wire(access).into(),
        }),
        Kind::Preset(name) => sim(Scenario::Preset(name.clone())),
        Kind::Scenario(text) => sim(Scenario::ScenarioToml(text.clone())),
        Kind::Generated(generator) => sim(Scenario::Generator(generator_to_wire(generator))),
    };
    v1::Environment {
        name,
        kind: Some(kind),
        seed: recipe.seed,
        autoreset: wire::autoreset_to_wire(recipe.autoreset).into(),
        lease_duration: prost_types::Duration::try_from(recipe.lease).ok(),
        create_time: None,
        expire_time: None,
        count: recipe.count.get() as u32,
    }
}

fn generator_to_wire(generator: &Generator) -> v1::sim_host::Generator {
    let range = |(low, high): (usize, usize)| {
        Some(v1::sim_host::CountRange {
            low: low as u32,
            high: high as u32,
        })
    };
    v1::sim_host::Generator {
        disks: range(generator.disks),
        channels: range(generator.channels),
        devices: range(generator.devices),
        steps: generator.steps,
        schedulers: generator.schedulers,
        known_work: generator.known_work,
        templates: generator.templates.clone(),
        template_share: generator.template_share,
        template_spread: generator.template_spread,
    }
}
