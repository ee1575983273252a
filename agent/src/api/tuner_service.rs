//! `TunerService` over the owners of hosts: handlers only send commands and read what is shown.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blkpilot_env::EnvSpec;
use blkpilot_host::DeviceKnob;
use blkpilot_proto::v1;
use blkpilot_proto::v1::tuner_service_server::TunerService;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::paging;
use super::tuner_wire::{
    decision_to_wire, device_to_wire, disk_settings_to_wire, frozen_to_wire, guest_to_wire,
    host_to_wire, reward_change_from_wire, reward_to_wire,
};
use crate::admission::Choice;
use crate::backend::DiskName;
use crate::config::mode::Knob;
use crate::decision::Decision;
use crate::owner::handle::{
    self, ChangeCall, DeviceCall, DeviceRequest, DiskCall, DiskRequest, HostHandle, HostState,
    RewardCall, ShownWindow, UnfreezeCall, unavailable,
};
use crate::requests::repeat::parse_request_id;
use crate::wire;
use crate::wire::names::{self, Row, decode, guest_name, host_name};
use crate::wire::status::Failure;

/// Watchers at once.
const MOST_WATCHERS: usize = 2048;
/// Longest wait for a host's first window.
const FIRST_WINDOW: Duration = Duration::from_secs(5);

/// `TunerService`.
#[derive(Debug)]
pub struct Service {
    hosts: BTreeMap<String, HostHandle>,
    watchers: Arc<AtomicUsize>,
}

impl Service {
    /// A service over these hosts.
    #[must_use]
    pub fn new(hosts: impl IntoIterator<Item = HostHandle>) -> Self {
        let by_name = |host: HostHandle| (host.info.name.clone(), host);
        Self {
            hosts: hosts.into_iter().map(by_name).collect(),
            watchers: Arc::default(),
        }
    }

    fn host(&self, field: &str, name: &str) -> Result<&HostHandle, Failure> {
        let [id] = names::parse(field, name, "hosts/*")?;
        self.host_by_id(id)
    }

    fn host_by_id(&self, id: &str) -> Result<&HostHandle, Failure> {
        self.hosts
            .get(id)
            .ok_or_else(|| Failure::not_found(&host_name(id), "ListHosts names those there are"))
    }

    async fn list_guests(
        &self,
        request: v1::ListGuestsRequest,
    ) -> Result<v1::ListGuestsResponse, Failure> {
        let host = self.host("parent", &request.parent)?;
        let window = window(host).await?;
        let guests = window
            .guests
            .iter()
            .map(|guest| guest_to_wire(&host.info, &window, guest));
        let mut guests: Vec<v1::Guest> = guests.collect();
        guests.sort_by(|a, b| a.name.cmp(&b.name));
        let (guests, next_page_token) =
            paging::page(guests, |g| &g.name, request.page_size, &request.page_token)?;
        Ok(v1::ListGuestsResponse {
            guests,
            next_page_token,
        })
    }

    async fn get_guest(&self, name: &str) -> Result<v1::Guest, Failure> {
        let [host, guest] = names::parse("name", name, "hosts/*/guests/*")?;
        let (host, guest) = (self.host_by_id(host)?, decode(guest));
        let window = window(host).await?;
        let found = window
            .guests
            .iter()
            .find(|known| known.status.name == guest);
        found
            .map(|found| guest_to_wire(&host.info, &window, found))
            .ok_or_else(|| {
                let name = guest_name(&host.info.name, &guest);
                Failure::not_found(&name, "it is not running; ListGuests names those that are")
            })
    }

    async fn apply(&self, request: v1::ApplyRequest) -> Result<v1::Decision, Failure> {
        use v1::apply_request::Action;
        let host = self.host("host", &request.host)?;
        let wanted = match request.action {
            Some(Action::Decision(name)) => {
                handle::Request::Proposal(names::parse_decision("decision", &name)?)
            }
            Some(Action::Levels(levels)) => {
                let choices = levels.choices.into_iter().enumerate();
                let choices = choices.map(|(i, choice)| self::choice(host, i, choice));
                handle::Request::Levels(choices.collect::<Result<_, _>>()?)
            }
            None => {
                let problem = "is missing: give decision or levels";
                return Err(Failure::field("action", problem));
            }
        };
        let call = ChangeCall {
            request: wanted,
            validate_only: request.validate_only,
            request_id: parse_request_id(&request.request_id)?,
            force_reason: wire::force_reason_from_wire("force_reason", &request.force_reason)?,
        };
        change(host, call).await
    }

    async fn rollback(&self, request: v1::RollbackRequest) -> Result<v1::Decision, Failure> {
        let [host, guest] = names::parse("name", &request.name, "hosts/*/guests/*")?;
        let call = ChangeCall {
            request: handle::Request::Rollback((guest != "-").then(|| decode(guest))),
            validate_only: request.validate_only,
            request_id: parse_request_id(&request.request_id)?,
            force_reason: None,
        };
        change(self.host_by_id(host)?, call).await
    }

    async fn unfreeze(
        &self,
        request: v1::UnfreezeRequest,
    ) -> Result<v1::UnfreezeResponse, Failure> {
        let (host, guest, target) = guest_or_disk(&request.name)?;
        let host = self.host_by_id(&host)?;
        let call = UnfreezeCall {
            guest: guest.clone(),
            target,
            knob: knob("head", &request.head)?,
            validate_only: request.validate_only,
        };
        window(host).await?;
        let knobs = host.unfreeze(call).await?;
        let to_wire = |knob| frozen_to_wire(&host.info.name, &guest, knob);
        Ok(v1::UnfreezeResponse {
            knobs: knobs.iter().map(to_wire).collect(),
        })
    }

    async fn set_reward_weights(
        &self,
        request: v1::SetRewardWeightsRequest,
    ) -> Result<v1::SetRewardWeightsResponse, Failure> {
        let host = self.host("name", &request.name)?;
        let call = RewardCall {
            change: reward_change_from_wire(&request.weights.unwrap_or_default()),
            validate_only: request.validate_only,
        };
        let reward = host.set_reward(call).await?;
        Ok(v1::SetRewardWeightsResponse {
            weights: Some(reward_to_wire(&reward)),
        })
    }

    async fn list_devices(
        &self,
        request: v1::ListDevicesRequest,
    ) -> Result<v1::ListDevicesResponse, Failure> {
        let host = self.host("parent", &request.parent)?;
        window(host).await?;
        let devices = host.devices().await?;
        let to_wire = |device| device_to_wire(&host.info.name, device);
        Ok(v1::ListDevicesResponse {
            devices: devices.iter().map(to_wire).collect(),
        })
    }

    async fn change_device(&self, request: v1::ChangeDeviceRequest) -> Result<v1::Device, Failure> {
        use v1::change_device_request::Action;
        let [host, device] = names::parse("name", &request.name, "hosts/*/devices/*")?;
        let host = self.host_by_id(host)?;
        let action = match request.action {
            Some(Action::Set(set)) => DeviceRequest::Set {
                knob: setting("set.setting", &set.setting)?,
                value: set.value,
            },
            Some(Action::PutBack(_)) => DeviceRequest::PutBack,
            Some(Action::Unfreeze(which)) => DeviceRequest::Unfreeze(match &which.setting[..] {
                "" => None,
                name => Some(setting("unfreeze.setting", name)?),
            }),
            None => {
                let problem = "is missing: give set, put_back or unfreeze";
                return Err(Failure::field("action", problem));
            }
        };
        let call = DeviceCall {
            device: decode(device),
            action,
            validate_only: request.validate_only,
            force_reason: wire::force_reason_from_wire("force_reason", &request.force_reason)?,
        };
        window(host).await?;
        let device = host.change_device(call).await?;
        Ok(device_to_wire(&host.info.name, &device))
    }

    async fn list_disk_settings(
        &self,
        request: v1::ListDiskSettingsRequest,
    ) -> Result<v1::ListDiskSettingsResponse, Failure> {
        let host = self.host("parent", &request.parent)?;
        window(host).await?;
        let disks = host.disks().await?;
        let to_wire = |disk| disk_settings_to_wire(&host.info.name, disk);
        Ok(v1::ListDiskSettingsResponse {
            disks: disks.iter().map(to_wire).collect(),
        })
    }

    async fn change_disk_settings(
        &self,
        request: v1::ChangeDiskSettingsRequest,
    ) -> Result<v1::DiskSettings, Failure> {
        use v1::change_disk_settings_request::Action;
        let [host, guest, target] =
            names::parse("name", &request.name, "hosts/*/guests/*/disks/*")?;
        let host = self.host_by_id(host)?;
        let action = match request.action {
            Some(Action::Set(set)) if !set.values.is_empty() => {
                let values = set.values.into_iter().map(|part| (part.name, part.value));
                DiskRequest::Set(values.collect())
            }
            Some(Action::Set(_)) => {
                return Err(Failure::field("set.values", "is empty: name what to set"));
            }
            Some(Action::PutBack(_)) => DiskRequest::PutBack,
            None => return Err(Failure::field("action", "is missing: give set or put_back")),
        };
        let call = DiskCall {
            disk: DiskName {
                guest: decode(guest),
                target: decode(target),
            },
            action,
            validate_only: request.validate_only,
        };
        window(host).await?;
        let disk = host.change_disk(call).await?;
        Ok(disk_settings_to_wire(&host.info.name, &disk))
    }

    async fn get_decision(&self, name: &str) -> Result<v1::Decision, Failure> {
        let id = names::parse_decision("name", name)?;
        let mut last = None;
        for host in self.hosts.values() {
            match host.find(id).await {
                Ok(decision) => return Ok(decision_to_wire(&host.info.spec, &decision)),
                Err(failure) => last = Some(failure),
            }
        }
        Err(last.unwrap_or_else(|| Failure::not_found(name, "there are no hosts")))
    }

    fn list_decisions(
        &self,
        request: &v1::ListDecisionsRequest,
    ) -> Result<v1::ListDecisionsResponse, Failure> {
        let host = self.host("parent", &request.parent)?;
        let size = paging::size(request.page_size)?;
        let foreign = || paging::foreign_token(&request.page_token);
        let after: Option<Uuid> = match request.page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_| foreign())?),
        };
        let page = host
            .history
            .page(&host.info.name, after, size)
            .ok_or_else(foreign)?;
        let decisions = page.decisions.iter();
        Ok(v1::ListDecisionsResponse {
            decisions: decisions
                .map(|d| decision_to_wire(&host.info.spec, d))
                .collect(),
            next_page_token: page.next.map_or_else(String::new, |id| id.to_string()),
        })
    }

    fn new_watcher(&self) -> Result<Watcher, Failure> {
        let watcher = Watcher(Arc::clone(&self.watchers));
        if self.watchers.fetch_add(1, Ordering::Relaxed) < MOST_WATCHERS {
            return Ok(watcher);
        }
        let message =
            format!("{MOST_WATCHERS} watchers are connected, which is the limit: end one");
        Err(Failure::new(
            Code::ResourceExhausted,
            "TOO_MANY_WATCHERS",
            message,
        ))
    }
}

/// Counts itself out when its stream ends.
struct Watcher(Arc<AtomicUsize>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Host, guest and, of a disk, target.
fn guest_or_disk(name: &str) -> Result<(String, String, Option<String>), Failure> {
    if let Ok((host, Row::Disk { guest, target })) = names::parse_row("name", name) {
        return Ok((host, guest, Some(target)));
    }
    let [host, guest] = names::parse("name", name, "hosts/*/guests/*")?;
    Ok((host.to_owned(), decode(guest), None))
}

/// A knob by its head; `None` if none is named.
fn knob(field: &str, head: &str) -> Result<Option<Knob>, Failure> {
    if head.is_empty() {
        return Ok(None);
    }
    let known = Knob::ALL.into_iter().find(|knob| knob.name() == head);
    known.map(Some).ok_or_else(|| {
        let known = Knob::ALL.map(Knob::name).join(", ");
        Failure::field(
            field,
            format!("= \"{head}\" must be one of {known}, or empty"),
        )
    })
}

fn setting(field: &str, name: &str) -> Result<DeviceKnob, Failure> {
    name.parse().map_err(|_| {
        let known = DeviceKnob::ALL.map(DeviceKnob::name).join(", ");
        Failure::field(field, format!("= \"{name}\" must be one of {known}"))
    })
}

fn choice(host: &HostHandle, i: usize, choice: v1::LevelChoice) -> Result<Choice, Failure> {
    let field = format!("levels.choices[{i}].name");
    let (of_host, row) = names::parse_row(&field, &choice.name)?;
    if of_host != host.info.name {
        let problem = format!("\"{}\" is not on hosts/{}", choice.name, host.info.name);
        return Err(Failure::field(field, problem));
    }
    Ok(Choice {
        row,
        head: choice.head,
        level: choice.level,
    })
}

async fn change(host: &HostHandle, call: ChangeCall) -> Result<v1::Decision, Failure> {
    window(host).await?;
    let decision = host.change(call).await?;
    Ok(decision_to_wire(&host.info.spec, &decision))
}

/// What the host shows, after a moment if it has just been started.
async fn window(host: &HostHandle) -> Result<Arc<ShownWindow>, Failure> {
    // What is nearly always there is not waited for.
    if let Some(window) = &host.view.borrow().window {
        return Ok(Arc::clone(window));
    }
    let mut view = host.view.clone();
    let settled = view.wait_for(|view| view.state != HostState::Starting);
    // A timeout and an owner that has ended are both seen in the state below.
    let _ = tokio::time::timeout(FIRST_WINDOW, settled).await;
    let view = view.borrow().clone();
    view.window
        .ok_or_else(|| unavailable(&host.info.name, &view.state))
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchDecisionsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TunerService for Service {
    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        let request = request.into_inner();
        let hosts = self.hosts.values().map(host_to_wire);
        let (hosts, next_page_token) =
            paging::page(hosts, |h| &h.name, request.page_size, &request.page_token)?;
        Ok(Response::new(v1::ListHostsResponse {
            hosts,
            next_page_token,
        }))
    }

    async fn list_guests(
        &self,
        request: Request<v1::ListGuestsRequest>,
    ) -> Result<Response<v1::ListGuestsResponse>, Status> {
        Ok(Response::new(
            Self::list_guests(self, request.into_inner()).await?,
        ))
    }

    async fn get_guest(
        &self,
        request: Request<v1::GetGuestRequest>,
    ) -> Result<Response<v1::Guest>, Status> {
        Ok(Response::new(
            Self::get_guest(self, &request.into_inner().name).await?,
        ))
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::Decision>, Status> {
        let host = self.host("host", &request.into_inner().host)?;
        window(host).await?;
        let decision = host.propose().await?;
        Ok(Response::new(decision_to_wire(&host.info.spec, &decision)))
    }

    async fn apply(
        &self,
        request: Request<v1::ApplyRequest>,
    ) -> Result<Response<v1::Decision>, Status> {
        Ok(Response::new(
            Self::apply(self, request.into_inner()).await?,
        ))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<v1::Decision>, Status> {
        Ok(Response::new(
            Self::rollback(self, request.into_inner()).await?,
        ))
    }

    async fn unfreeze(
        &self,
        request: Request<v1::UnfreezeRequest>,
    ) -> Result<Response<v1::UnfreezeResponse>, Status> {
        Ok(Response::new(
            Self::unfreeze(self, request.into_inner()).await?,
        ))
    }

    async fn set_reward_weights(
        &self,
        request: Request<v1::SetRewardWeightsRequest>,
    ) -> Result<Response<v1::SetRewardWeightsResponse>, Status> {
        Ok(Response::new(
            Self::set_reward_weights(self, request.into_inner()).await?,
        ))
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        Ok(Response::new(
            Self::list_devices(self, request.into_inner()).await?,
        ))
    }

    async fn change_device(
        &self,
        request: Request<v1::ChangeDeviceRequest>,
    ) -> Result<Response<v1::Device>, Status> {
        Ok(Response::new(
            Self::change_device(self, request.into_inner()).await?,
        ))
    }

    async fn list_disk_settings(
        &self,
        request: Request<v1::ListDiskSettingsRequest>,
    ) -> Result<Response<v1::ListDiskSettingsResponse>, Status> {
        Ok(Response::new(
            Self::list_disk_settings(self, request.into_inner()).await?,
        ))
    }

    async fn change_disk_settings(
        &self,
        request: Request<v1::ChangeDiskSettingsRequest>,
    ) -> Result<Response<v1::DiskSettings>, Status> {
        Ok(Response::new(
            Self::change_disk_settings(self, request.into_inner()).await?,
        ))
    }

    async fn get_decision(
        &self,
        request: Request<v1::GetDecisionRequest>,
    ) -> Result<Response<v1::Decision>, Status> {
        Ok(Response::new(
            Self::get_decision(self, &request.into_inner().name).await?,
        ))
    }

    async fn list_decisions(
        &self,
        request: Request<v1::ListDecisionsRequest>,
    ) -> Result<Response<v1::ListDecisionsResponse>, Status> {
        Ok(Response::new(Self::list_decisions(
            self,
            &request.into_inner(),
        )?))
    }

    type WatchDecisionsStream = Events;

    async fn watch_decisions(
        &self,
        request: Request<v1::WatchDecisionsRequest>,
    ) -> Result<Response<Events>, Status> {
        let host = self.host("parent", &request.into_inner().parent)?;
        let watcher = self.new_watcher()?;
        let decisions = BroadcastStream::new(host.watch()?);
        let info = Arc::clone(&host.info);
        let events = decisions.map(move |event| {
            // Held for as long as the stream is.
            let _watcher = &watcher;
            Ok(watch_event(&info.spec, event))
        });
        let started = v1::watch_decisions_response::Started {};
        let started = v1::WatchDecisionsResponse {
            event: Some(v1::watch_decisions_response::Event::Started(started)),
        };
        let events = tokio_stream::once(Ok(started)).chain(events);
        Ok(Response::new(Box::pin(events)))
    }
}

fn watch_event(
    spec: &EnvSpec,
    event: Result<Arc<Decision>, BroadcastStreamRecvError>,
) -> v1::WatchDecisionsResponse {
    use v1::watch_decisions_response::Event;
    let event = match event {
        Ok(decision) => Event::Decision(decision_to_wire(spec, &decision)),
        Err(BroadcastStreamRecvError::Lagged(missed)) => Event::Missed(missed),
    };
    v1::WatchDecisionsResponse { event: Some(event) }
}
