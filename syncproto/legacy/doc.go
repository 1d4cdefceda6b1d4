// Package legacy speaks the kernel's own sync protocol on a network, so that
// directors that still run `ipvsadm --start-daemon` or keepalived's
// lvs_sync_daemon can be replaced one at a time.
//
// What must hold:
//
//   - That network has no key: whatever comes from it is hostile. What is
//     handed on was decoded as the kernel would decode it, is not more than
//     MaxHeard records a second, and everything else is counted by its reason.
//     What a record may do is for the caller to decide.
//   - What a syncd sent is never taken for a legacy director's word. Each of our
//     records has a bit set in its flags that no kernel sets and every kernel
//     ignores (net/netfilter/ipvs/ip_vs_sync.c takes IP_VS_CONN_F_BACKUP_MASK
//     only); who hears it drops the record. So connections do not go round in
//     circles between syncds that hear each other here.
//   - An interface that vanishes, or loses the group, is joined again when it
//     is back; meanwhile nothing ends.
//
// The codec is package kernelsync.
package legacy
