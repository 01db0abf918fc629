//! XDP: which uplinks carry it, in which hook, and why others do not.
//!
//! Deciding is pure. Not for: what the program does, which is nothing that TC would not do.

use std::collections::BTreeMap;

use lb_common::abi::{Device, DeviceFlags, DeviceRole};

use crate::{
    dataplane::{Kernel, KernelError, XdpHook, XdpMode},
    net::{self, DeviceFacts, Layer, XdpFeatures},
};

/// What is to be done about XDP at a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Choice {
    /// Attach the program.
    Attach(XdpHook),
    /// Leave the device to TC, for this reason.
    Leave(&'static str),
    /// Leave it to TC though XDP was asked for: why, and the mend.
    Refuse(&'static str, &'static str),
    /// It is none that XDP is for.
    Unfit,
}

const NO_DRIVER: &str = "its driver has no XDP";
const HIDDEN_TAGS: &str = "it takes tags off VLAN frames, which XDP would answer without";
const SHOW_TAGS: &str = "ethtool -K DEVICE rxvlan off";
const USE_OTHER: &str = "set --xdp to auto, or to generic for a test";

/// What drivers say of the devices of one picture.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    /// `None` where the kernel has no way to ask.
    features: Option<BTreeMap<u32, XdpFeatures>>,
}

impl Drivers {
    /// Asks, where the answer can matter.
    pub(crate) fn ask(mode: XdpMode) -> Self {
        if mode == XdpMode::Off {
            return Self::default();
        }
        let features = net::xdp_features();
        if let Err(error) = &features {
            tracing::debug!(%error, "ask what devices do with XDP");
        }
        Self { features: features.ok() }
    }

    /// What is done about XDP at a device, and what the program may do with it.
    pub(super) fn judge(
        &self,
        mode: XdpMode,
        device: &DeviceFacts,
        entry: Device,
    ) -> (Device, Choice) {
        let features = self.features.as_ref();
        let features = features.map(|all| all.get(&device.ifindex).copied().unwrap_or_default());
        let hides_tags = || device.carries_vlans && strips_vlan_tags(device.ifindex);
        let choice = choose(mode, device, features, hides_tags);
        let flags = flags(device, features.unwrap_or_default(), choice);
        (Device { flags: entry.flags.with(flags), ..entry }, choice)
    }
}

/// What an agent would do about XDP at a device, without trying; none where it is not for XDP.
pub(crate) fn outlook(drivers: &Drivers, mode: XdpMode, device: &DeviceFacts) -> Option<Outlook> {
    let (_, choice) = drivers.judge(mode, device, device.entry(net::Primary::default())?);
    let (shown, fault) = standing(choice)?;
    let mend = match choice {
        Choice::Leave(HIDDEN_TAGS) => Some(SHOW_TAGS.to_owned()),
        _ => fault.map(|(_, mend)| mend),
    };
    Some(Outlook { shown, mend: mend.map(|mend| mend.replace("DEVICE", &device.name)) })
}

/// How XDP would stand at a device.
#[derive(Debug)]
pub(crate) struct Outlook {
    /// As `status` shows it.
    pub(crate) shown: String,
    /// What gives the device XDP, where something can.
    pub(crate) mend: Option<String>,
}

/// A device that does not tell is taken for one that does.
fn strips_vlan_tags(ifindex: u32) -> bool {
    net::strips_vlan_tags(ifindex).unwrap_or(true)
}

fn choose(
    mode: XdpMode,
    device: &DeviceFacts,
    features: Option<XdpFeatures>,
    hides_tags: impl Fn() -> bool,
) -> Choice {
    let has_driver = features.is_none_or(|features| features.has(XdpFeatures::BASIC));
    match mode {
        _ if !is_fit(device) => Choice::Unfit,
        XdpMode::Off => Choice::Leave("--xdp=off"),
        XdpMode::Auto if !matches!(&*device.kind, "" | "bond") => {
            Choice::Leave("it is no hardware")
        }
        XdpMode::Auto if !has_driver => Choice::Leave(NO_DRIVER),
        XdpMode::Auto if hides_tags() => Choice::Leave(HIDDEN_TAGS),
        XdpMode::Native if !has_driver => Choice::Refuse(NO_DRIVER, USE_OTHER),
        XdpMode::Generic | XdpMode::Native if hides_tags() => {
            Choice::Refuse(HIDDEN_TAGS, SHOW_TAGS)
        }
        XdpMode::Auto | XdpMode::Native => Choice::Attach(XdpHook::Native),
        XdpMode::Generic => Choice::Attach(XdpHook::Generic),
    }
}

/// Frames come in from outside, and are frames.
fn is_fit(device: &DeviceFacts) -> bool {
    device.role() == Some(DeviceRole::UPLINK) && device.layer == Layer::Ethernet
}

/// A veth sends back what came in by it when its far end has a program too, which nobody can see; what
/// is redirected to it, where its features say so.
fn flags(device: &DeviceFacts, features: XdpFeatures, choice: Choice) -> DeviceFlags {
    let mut flags = DeviceFlags::NONE;
    if is_fit(device) && features.has(XdpFeatures::TRANSMIT) {
        flags = flags.with(DeviceFlags::TAKES_FRAMES);
    }
    let returns = match choice {
        Choice::Attach(XdpHook::Generic) => true,
        Choice::Attach(XdpHook::Native) => device.kind != "veth",
        _ => false,
    };
    if returns { flags.with(DeviceFlags::RETURNS_FRAMES) } else { flags }
}

/// How XDP stands at a device, as `status` shows it; and what is wrong, with the mend.
pub(super) type Standing = (String, Option<(String, String)>);

/// Brings the program to a device, or away from it.
pub(super) fn bring(
    kernel: &mut Kernel,
    (ifindex, mode): (u32, XdpMode),
    choice: Choice,
) -> Option<Standing> {
    let result = match choice {
        Choice::Attach(hook) => kernel.attach_xdp(ifindex, hook),
        _ => kernel.detach_xdp(ifindex),
    };
    match result {
        Err(error) if error.is_device_gone() => None,
        Err(error) => {
            let fault = (mode != XdpMode::Auto || is_taken(&error)).then(|| fault(&error));
            Some((format!("off ({error})"), fault))
        }
        Ok(()) => standing(choice),
    }
}

/// How XDP stands where nothing has failed.
fn standing(choice: Choice) -> Option<Standing> {
    let off = |reason: &str| format!("off ({reason})");
    match choice {
        Choice::Attach(XdpHook::Generic) => Some(("generic".to_owned(), None)),
        Choice::Attach(XdpHook::Native) => Some(("native".to_owned(), None)),
        Choice::Leave(reason) => Some((off(reason), None)),
        Choice::Refuse(reason, mend) => {
            Some((off(reason), Some((format!("no XDP: {reason}"), mend.to_owned()))))
        }
        Choice::Unfit => None,
    }
}

fn is_taken(error: &KernelError) -> bool {
    error.errno() == Some(libc::EBUSY)
}

fn fault(error: &KernelError) -> (String, String) {
    let mend = match error.errno() {
        Some(libc::EBUSY) => "another program has the hook: detach it, or set --xdp=off",
        Some(libc::EOPNOTSUPP) => USE_OTHER,
        Some(libc::ERANGE | libc::EINVAL) => {
            "its MTU or its queues may not allow XDP: the kernel's log may say more; or set --xdp=off"
        }
        _ => "its packets go by TC until it can be attached",
    };
    (error.to_string(), mend.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{SkipReason, Usage};

    const ALL: Option<XdpFeatures> = Some(XdpFeatures(0b111));
    const NATIVE: Choice = Choice::Attach(XdpHook::Native);

    fn uplink(kind: &str) -> DeviceFacts {
        DeviceFacts {
            ifindex: 2,
            name: "eth0".to_owned(),
            kind: kind.to_owned(),
            usage: Usage::Attach(DeviceRole::UPLINK),
            layer: Layer::Ethernet,
            mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            up: true,
            v4: Vec::new(),
            v6: Vec::new(),
            master: None,
            carries_vlans: false,
        }
    }

    fn chosen(mode: XdpMode, kind: &str, features: Option<XdpFeatures>) -> Choice {
        choose(mode, &uplink(kind), features, || false)
    }

    #[test]
    fn auto_takes_hardware_whose_driver_can() {
        assert_eq!(chosen(XdpMode::Auto, "", ALL), NATIVE);
        assert_eq!(chosen(XdpMode::Auto, "bond", ALL), NATIVE);
        // A kernel that has no way to tell: the driver does when it is tried.
        assert_eq!(chosen(XdpMode::Auto, "", None), NATIVE);
        assert_eq!(chosen(XdpMode::Auto, "", Some(XdpFeatures(0))), Choice::Leave(NO_DRIVER));
        for kind in ["veth", "tun", "bridge", "vxlan"] {
            assert!(matches!(chosen(XdpMode::Auto, kind, ALL), Choice::Leave(_)), "{kind}");
        }
    }

    #[test]
    fn what_is_asked_for_is_done_or_refused() {
        assert_eq!(chosen(XdpMode::Native, "veth", ALL), NATIVE);
        let refused = chosen(XdpMode::Native, "bridge", Some(XdpFeatures(0)));
        assert_eq!(refused, Choice::Refuse(NO_DRIVER, USE_OTHER));
        let generic = Choice::Attach(XdpHook::Generic);
        assert_eq!(chosen(XdpMode::Generic, "bridge", Some(XdpFeatures(0))), generic);
        assert_eq!(chosen(XdpMode::Off, "", ALL), Choice::Leave("--xdp=off"));
    }

    #[test]
    fn devices_other_than_uplinks_have_no_xdp() {
        for usage in [Usage::Attach(DeviceRole::PODS), Usage::Skip(SkipReason::Loopback)] {
            let device = DeviceFacts { usage, ..uplink("") };
            for mode in [XdpMode::Auto, XdpMode::Generic, XdpMode::Native, XdpMode::Off] {
                assert_eq!(choose(mode, &device, ALL, || false), Choice::Unfit);
            }
            assert_eq!(flags(&device, XdpFeatures(0b111), Choice::Unfit), DeviceFlags::NONE);
        }
    }

    #[test]
    fn tags_that_are_taken_off_keep_xdp_away() {
        let hidden = |mode| choose(mode, &uplink(""), ALL, || true);
        assert_eq!(hidden(XdpMode::Auto), Choice::Leave(HIDDEN_TAGS));
        assert_eq!(hidden(XdpMode::Native), Choice::Refuse(HIDDEN_TAGS, SHOW_TAGS));
        assert_eq!(hidden(XdpMode::Generic), Choice::Refuse(HIDDEN_TAGS, SHOW_TAGS));
    }

    #[test]
    fn a_veth_is_sent_by_only_where_its_features_say_so() {
        let (returns, takes) = (DeviceFlags::RETURNS_FRAMES, DeviceFlags::TAKES_FRAMES);
        let basic = XdpFeatures::BASIC;
        assert_eq!(flags(&uplink("veth"), basic, NATIVE), DeviceFlags::NONE);
        assert_eq!(flags(&uplink("veth"), XdpFeatures(0b111), NATIVE), takes);
        assert_eq!(flags(&uplink(""), basic, NATIVE), returns);
        assert_eq!(flags(&uplink(""), XdpFeatures(0b111), NATIVE), returns.with(takes));
        let generic = Choice::Attach(XdpHook::Generic);
        assert_eq!(flags(&uplink("veth"), basic, generic), returns);
        assert_eq!(flags(&uplink(""), XdpFeatures(0b111), Choice::Leave("")), takes);
    }
}
