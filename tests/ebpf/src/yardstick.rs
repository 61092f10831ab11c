//! The yardstick: a layer-4 balancer as they are commonly built. A hash map of services, an LRU hash map of flows, a
//! ring of backends, counters for each CPU; a SYN is not looked up, a flow not found is steered by the ring and
//! recorded. It forwards as `dsr` does. No check that a public one makes on this path is made more costly here, and what
//! only some of them do (a flood guard, a fallback service for any port, sampling) is left out.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use ebb_tests_ebpf::yardstick::{Backend, Flow, FlowKey, RING, Stats, Vip, VipKey};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
};

use crate::frame::load;

#[btf_map]
static Y_VIPS: HashMap<VipKey, Vip, 512> = HashMap::new();
#[btf_map]
static Y_FLOWS: LruHashMap<FlowKey, Flow, 1024> = LruHashMap::new();
#[btf_map]
static Y_RING: Array<u32, { RING as usize }> = Array::new();
#[btf_map]
static Y_BACKENDS: Array<Backend, 4096> = Array::new();
#[btf_map]
static Y_VIP_STATS: PerCpuArray<Stats, 512> = PerCpuArray::new();
#[btf_map]
static Y_BACKEND_STATS: PerCpuArray<Stats, 4096> = PerCpuArray::new();
/// Packets, and those that missed the flow table.
#[btf_map]
static Y_FLOW_STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

const IPV4: u16 = 0x0800u16.to_be();
const IPV6: u16 = 0x86ddu16.to_be();
const TCP: u8 = IpProto::Tcp as u8;
const UDP: u8 = IpProto::Udp as u8;
/// Silence after which a datagram's flow is steered anew.
const UDP_TIMEOUT_NS: u64 = 30_000_000_000;

struct Parsed {
    key: FlowKey,
    bytes: u64,
    syn: bool,
    rst: bool,
}

#[xdp]
pub fn yardstick(ctx: XdpContext) -> u32 {
    let Some(packet) = parse(&ctx) else { return XDP_PASS };
    balance(&ctx, &packet)
}

#[inline(always)]
fn parse(ctx: &XdpContext) -> Option<Parsed> {
    let mut key = FlowKey { source: [0; 4], destination: [0; 4], ports: 0, protocol: 0 };
    let (transport, bytes);
    match load::<u16>(ctx, 12)? {
        IPV4 => {
            let header: [u32; 5] = load(ctx, EthHdr::LEN)?;
            let first = header[0].to_ne_bytes();
            // Options and fragments are not taken.
            if first[0] != 0x45 || header[1].to_ne_bytes()[2] & 0x3f != 0 || header[1].to_ne_bytes()[3] != 0 {
                return None;
            }
            key.source[0] = header[3];
            key.destination[0] = header[4];
            key.protocol = u32::from(header[2].to_ne_bytes()[1]);
            bytes = u64::from(u16::from_be_bytes([first[2], first[3]]));
            transport = EthHdr::LEN + Ipv4Hdr::LEN;
        }
        IPV6 => {
            let header: [u32; 10] = load(ctx, EthHdr::LEN)?;
            let second = header[1].to_ne_bytes();
            key.source = [header[2], header[3], header[4], header[5]];
            key.destination = [header[6], header[7], header[8], header[9]];
            key.protocol = u32::from(second[2]);
            bytes = u64::from(u16::from_be_bytes([second[0], second[1]])) + Ipv6Hdr::LEN as u64;
            transport = EthHdr::LEN + Ipv6Hdr::LEN;
        }
        _ => return None,
    }
    let (mut syn, mut rst) = (false, false);
    match key.protocol as u8 {
        TCP => {
            let header: [u32; 5] = load(ctx, transport)?;
            key.ports = header[0];
            let flags = header[3].to_ne_bytes()[1];
            syn = flags & 2 != 0;
            rst = flags & 4 != 0;
        }
        UDP => {
            let header: [u32; 2] = load(ctx, transport)?;
            key.ports = header[0];
        }
        _ => return None,
    }
    Some(Parsed { key, bytes, syn, rst })
}

#[inline(always)]
fn count(stats: Option<*mut Stats>, bytes: u64) {
    if let Some(stats) = stats {
        // SAFETY: this CPU's own row.
        unsafe {
            (*stats).packets += 1;
            (*stats).bytes += bytes;
        }
    }
}

#[inline(always)]
fn balance(ctx: &XdpContext, packet: &Parsed) -> u32 {
    let key = &packet.key;
    let vip_key =
        VipKey { addr: key.destination, port: (key.ports >> 16) as u16, protocol: key.protocol as u8, pad: 0 };
    // SAFETY: services do not come and go in the benchmark.
    let Some(vip) = (unsafe { Y_VIPS.get(vip_key) }) else { return XDP_PASS };
    let Some(flow_stats) = Y_FLOW_STATS.get_ptr_mut(0) else { return XDP_DROP };
    // SAFETY: this CPU's own row.
    unsafe { (*flow_stats).packets += 1 };
    let found = if packet.syn { None } else { known(key) };
    let backend = if let Some(backend) = found {
        backend
    } else {
        // SAFETY: as above; its second member counts the misses.
        unsafe { (*flow_stats).bytes += 1 };
        let hash = flow_hash(key) % RING;
        let Some(backend) = Y_RING.get(vip.number.wrapping_mul(RING).wrapping_add(hash)) else { return XDP_DROP };
        if !packet.rst {
            let seen_ns = if key.protocol as u8 == UDP { now() } else { 0 };
            let _ = Y_FLOWS.insert(key, Flow { backend: *backend, pad: 0, seen_ns }, 0);
        }
        *backend
    };
    let Some(row) = Y_BACKENDS.get(backend) else { return XDP_DROP };
    count(Y_VIP_STATS.get_ptr_mut(vip.number), packet.bytes);
    count(Y_BACKEND_STATS.get_ptr_mut(backend), packet.bytes);
    send(ctx, row)
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn known(key: &FlowKey) -> Option<u32> {
    let flow = Y_FLOWS.get_ptr_mut(key)?;
    // SAFETY: an entry of a preallocated map; at worst it is another flow's by now, as in any such balancer.
    let flow = unsafe { &mut *flow };
    if key.protocol as u8 == UDP {
        let now = now();
        if now.wrapping_sub(flow.seen_ns) > UDP_TIMEOUT_NS {
            return None;
        }
        flow.seen_ns = now;
    }
    Some(flow.backend)
}

#[inline(always)]
fn send(ctx: &XdpContext, backend: &Backend) -> u32 {
    let start = ctx.data();
    if start + 12 > ctx.data_end() {
        return XDP_DROP;
    }
    // SAFETY: within the packet by the check above.
    unsafe {
        core::ptr::write_unaligned(start as *mut [u8; 6], backend.destination_mac);
        core::ptr::write_unaligned((start + 6) as *mut [u8; 6], backend.source_mac);
    }
    XDP_TX
}

/// Jenkins' hash over source address and ports, as the kernel's `jhash2` has it (include/linux/jhash.h), and as the
/// public balancers use it.
#[inline(always)]
fn flow_hash(key: &FlowKey) -> u32 {
    let mut a = 0xdead_beef_u32.wrapping_add(16);
    let (mut b, mut c) = (a, a);
    a = a.wrapping_add(key.source[0]);
    b = b.wrapping_add(key.source[1]);
    c = c.wrapping_add(key.source[2]);
    a = a.wrapping_sub(c) ^ c.rotate_left(4);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(6);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(8);
    b = b.wrapping_add(a);
    a = a.wrapping_sub(c) ^ c.rotate_left(16);
    c = c.wrapping_add(b);
    b = b.wrapping_sub(a) ^ a.rotate_left(19);
    a = a.wrapping_add(c);
    c = c.wrapping_sub(b) ^ b.rotate_left(4);
    b = b.wrapping_add(a);
    a = a.wrapping_add(key.source[3]);
    b = b.wrapping_add(key.ports);
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
