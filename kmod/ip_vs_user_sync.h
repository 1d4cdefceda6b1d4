/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * The generic netlink family "IPVS_SYNC": what user space and the module
 * ip_vs_user_sync say to each other. ipvs_sync.yaml describes it for programs.
 *
 * Rules for the future: a new attribute is optional, numbers are never used
 * again, and a change that an old listener would misread gets a new
 * IPVS_SYNC_VERSION, which is the family's version in the controller's answer.
 * A receiver skips attributes that it does not know; the module refuses them
 * (EINVAL), so that a caller learns that its wish was not understood.
 */
#ifndef _IP_VS_USER_SYNC_H
#define _IP_VS_USER_SYNC_H

#define IPVS_SYNC_NAME		"IPVS_SYNC"
#define IPVS_SYNC_VERSION	1
#define IPVS_SYNC_GROUP_EVENTS	"events"

/* Connections in one CREATE or DELETE at most */
#define IPVS_SYNC_MAX_CONNS	256

enum ipvs_sync_cmd {
	IPVS_SYNC_CMD_UNSPEC,
	IPVS_SYNC_CMD_GET,	/* do: one CONN by its key; dump: all, or those
				 * that a CONN with some of PROTOCOL, VADDR,
				 * VPORT, DADDR, DPORT names
				 */
	IPVS_SYNC_CMD_CREATE,	/* CONNs; answers RESULTS in their order */
	IPVS_SYNC_CMD_DELETE,	/* CONNs by key; answers RESULTS */
	IPVS_SYNC_CMD_STATS,	/* answers STATS, of this network namespace */
	IPVS_SYNC_CMD_EVENTS,	/* notification: CPU, SEQ, DROPPED, CONNs */
	__IPVS_SYNC_CMD_MAX,
};

#define IPVS_SYNC_CMD_MAX (__IPVS_SYNC_CMD_MAX - 1)

enum ipvs_sync_attr {
	IPVS_SYNC_A_UNSPEC,
	IPVS_SYNC_A_PAD,
	IPVS_SYNC_A_CONN,	/* nest of ipvs_sync_conn_attr, may repeat */
	IPVS_SYNC_A_RESULTS,	/* s32 for each CONN: IPVS_SYNC_R_... or -errno */
	IPVS_SYNC_A_CPU,	/* u32: the stream that SEQ counts */
	IPVS_SYNC_A_SEQ,	/* u64: notifications of this CPU, without gap */
	IPVS_SYNC_A_DROPPED,	/* u64: events lost on this CPU so far */
	IPVS_SYNC_A_STATS,	/* nest of ipvs_sync_stats_attr */
	__IPVS_SYNC_A_MAX,
};

#define IPVS_SYNC_A_MAX (__IPVS_SYNC_A_MAX - 1)

/*
 * A connection. Its address family is that of CADDR's length, 4 or 16 bytes;
 * DADDR may be of the other family.
 */
enum ipvs_sync_conn_attr {
	IPVS_SYNC_CONN_UNSPEC,
	IPVS_SYNC_CONN_PAD,
	/* The key; of a template CPORT is 0 and FLAGS has 0x1000. */
	IPVS_SYNC_CONN_PROTOCOL,	/* u8: 0 for a fwmark template */
	IPVS_SYNC_CONN_CADDR,		/* binary, network byte order */
	IPVS_SYNC_CONN_CPORT,		/* be16 */
	IPVS_SYNC_CONN_VADDR,
	IPVS_SYNC_CONN_VPORT,
	IPVS_SYNC_CONN_FLAGS,		/* u32: IP_VS_CONN_F_... */

	IPVS_SYNC_CONN_DADDR,
	IPVS_SYNC_CONN_DPORT,
	IPVS_SYNC_CONN_STATE,		/* u16: index into the protocol's states */
	IPVS_SYNC_CONN_FWMARK,		/* u32 */
	IPVS_SYNC_CONN_TIMEOUT,		/* u32, ms: the state's full timeout */
	IPVS_SYNC_CONN_REMAINING,	/* u32, ms: until it expires if quiet */
	IPVS_SYNC_CONN_PKTS,		/* u32: packets of the client */
	IPVS_SYNC_CONN_SEQ,		/* struct ipvs_sync_seq */
	IPVS_SYNC_CONN_PE_NAME,		/* string of at most 16 bytes */
	IPVS_SYNC_CONN_PE_DATA,		/* binary of at most 255 bytes */
	IPVS_SYNC_CONN_BOUND,		/* flag: has a real server's entry */

	/* Told, never taken */
	IPVS_SYNC_CONN_KIND,		/* u8: enum ipvs_sync_kind, of events */
	IPVS_SYNC_CONN_STAMP,		/* u64, ns of CLOCK_MONOTONIC: of two
					 * tellings the later one holds
					 */
	IPVS_SYNC_CONN_COOKIE,		/* u64: this entry and no other of the
					 * same key
					 */
	IPVS_SYNC_CONN_COMMANDED,	/* flag: expired by DELETE */

	/* Taken, never told */
	IPVS_SYNC_CONN_EXPECT_PKTS,	/* u32: CREATE and DELETE touch an entry
					 * with another PKTS not, EBUSY
					 */
	__IPVS_SYNC_CONN_MAX,
};

#define IPVS_SYNC_CONN_MAX (__IPVS_SYNC_CONN_MAX - 1)

/* How sequence numbers are moved, host byte order (struct ip_vs_seq) */
struct ipvs_sync_seq {
	__u32 in_init, in_delta, in_prev;
	__u32 out_init, out_delta, out_prev;
};

enum ipvs_sync_kind {
	IPVS_SYNC_KIND_UNSPEC,
	IPVS_SYNC_KIND_NEW,	/* a packet made it */
	IPVS_SYNC_KIND_STATE,	/* its state changed */
	IPVS_SYNC_KIND_UPDATE,	/* it lives on: a refresh, or its expiry put off */
	IPVS_SYNC_KIND_ADOPTED,	/* first packet of an entry made by CREATE */
	IPVS_SYNC_KIND_EXPIRED,	/* it is gone from the table */
	__IPVS_SYNC_KIND_MAX,
};

/* What became of a CONN of CREATE */
#define IPVS_SYNC_R_CREATED	1	/* else it was there and was updated */
#define IPVS_SYNC_R_BOUND	2	/* has a real server's entry */

enum ipvs_sync_stats_attr {	/* u64 each; since the namespace exists */
	IPVS_SYNC_STATS_UNSPEC,
	IPVS_SYNC_STATS_PAD,
	IPVS_SYNC_STATS_NEW,		/* events told, by kind */
	IPVS_SYNC_STATS_STATE,
	IPVS_SYNC_STATS_UPDATE,
	IPVS_SYNC_STATS_ADOPTED,
	IPVS_SYNC_STATS_EXPIRED,
	IPVS_SYNC_STATS_COALESCED,	/* told with the event before them */
	IPVS_SYNC_STATS_BATCHES,	/* notifications sent */
	IPVS_SYNC_STATS_OVERRUNS,	/* of them some listener's queue was full */
	IPVS_SYNC_STATS_DROPPED,	/* events lost: no memory, or too many waiting */
	IPVS_SYNC_STATS_CREATED,	/* connections, by commands */
	IPVS_SYNC_STATS_UPDATED,
	IPVS_SYNC_STATS_DELETED,
	IPVS_SYNC_STATS_REFUSED,
	IPVS_SYNC_STATS_CONNS,		/* entries that exist now */
	IPVS_SYNC_STATS_TABLE_SIZE,	/* hash buckets, of all namespaces */
	__IPVS_SYNC_STATS_MAX,
};

#define IPVS_SYNC_STATS_MAX (__IPVS_SYNC_STATS_MAX - 1)

#endif
