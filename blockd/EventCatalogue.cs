using System.Collections.Frozen;

namespace BlockServer.Blockd;

/// <summary>A kind of event.</summary>
/// <param name="Code">Stable word.</param>
/// <param name="Severity">info, warning, error or critical.</param>
/// <param name="IsFault">It is open until it is over.</param>
/// <param name="Cause">What leads to it.</param>
/// <param name="Advice">What to do.</param>
/// <param name="Ends">What ends it; null: it happens once.</param>
internal sealed record EventKind(string Code, string Severity, bool IsFault, string Cause, string Advice, string? Ends = null);

/// <summary>Every event that there is. docs/events.md is written from it.</summary>
internal static class EventCatalogue
{
    public const string DiskFailed = "disk-failed", DiskMissing = "disk-missing", DiskRefused = "disk-refused", DiskHung = "disk-hung",
        DiskSlow = "disk-slow", DiskErrors = "disk-errors", DiskBadBlocks = "disk-bad-blocks", Checksum = "checksum-error",
        StoreLow = "store-low", StoreFull = "store-full", StoreProtected = "store-write-protected", MetadataLow = "metadata-slots-low", MetadataUnavailable = "metadata-unavailable", PolicyFailed = "policy-failed",
        HookFailed = "hook-failed", VolumeFenced = "volume-not-served", SessionLost = "session-lost", ListenerFailed = "listener-failed",
        CertificateExpiring = "certificate-expiring", CertificateExpired = "certificate-expired", TaskFailed = "task-failed",
        VolumesAdopted = "volumes-adopted", Started = "daemon-started";

    /// <summary>From the mildest on.</summary>
    public static readonly IReadOnlyList<string> Severities = ["info", "warning", "error", "critical"];

    /// <summary>All, in the order of the document.</summary>
    public static readonly IReadOnlyList<EventKind> All =
    [
        new(DiskFailed, "critical", true, "A flush, log or metadata write of the disk failed, so it is not trusted with more; everything acknowledged is on it as far as the medium kept it.",
            "Look at the kernel's log and the medium. Mend or replace it, then restart the daemon, or remove and add the disk: it recovers when it opens.", "The disk is in service again, or removed."),
        new(DiskMissing, "critical", true, "The file or device of the disk is not where it was.",
            "Bring it back, or add the disk at its new place; if it is gone for good, remove it.", "The disk is in service again, or removed."),
        new(DiskRefused, "critical", true, "The file or device is there and cannot be served: damaged, of another cluster, a copy, or held by another process.",
            "pfcli list_disk says why; pfinspect looks into it without changing it.", "The disk is in service again, or removed."),
        new(DiskHung, "critical", true, "Requests wait at the medium and none was answered for 5 seconds.",
            "Look at the kernel's log, the controller and the path to the disk. Nothing is lost; requests go on when it answers.", "The medium answers again."),
        new(DiskSlow, "warning", true, "The medium took more than half a second for a request on the average.",
            "Look at what else uses it and at its health; a disk that stays slow is about to fail.", "Requests take less than a quarter of a second on the average, or none comes for a minute."),
        new(DiskErrors, "error", true, "The medium answered requests with errors.",
            "Look at the kernel's log and the disk's health. What could not be written went elsewhere; replace the disk soon.", "No more errors for an hour."),
        new(DiskBadBlocks, "warning", true, "The medium did not take or keep blocks that were written; they are never used again.",
            "A few are no harm. If they grow more, replace the disk.", "The disk is removed."),
        new(Checksum, "error", true, "Blocks were read whose content is not what was written. Readers got an error, never wrong data.",
            "pfcli scrub_volume finds all of them; bring the data back from a snapshot or backup: a write mends a block. Look at memory and medium.", "No more were found for an hour."),
        new(MetadataLow, "warning", true, "More metadata slots of the disk are in use than the level of --metadata-warn. Each MiB of a volume or snapshot that holds anything takes one.",
            "Small writes that are spread wide and many snapshots use them up: delete snapshots, trim, or move volumes to another disk.", "Three hundredths fewer than the level are in use, or the disk is write-protected."),
        new(StoreProtected, "error", true, "The disk or its metadata slots are used up to the level of --write-protect: only volumes that were promised room begin new extents; what exists can be overwritten, trimmed and deleted.",
            "Add a disk and move volumes, or trim or delete something. pfcli capacity shows what is used and promised.", "A hundredth of the disk is free again below the level, or it is full."),
        new(StoreLow, "warning", true, "Less is free on the disk than the level of --low-space.",
            "Add a disk, or trim or delete something.", "A quarter more than the level is free again."),
        new(StoreFull, "critical", true, "Nothing is free on the disk: writes to new places fail.",
            "Add a disk and move volumes, or trim or delete something; reads, overwrites of a disk with room and deletions go on.", "Something is free again."),
        new(MetadataUnavailable, "critical", true, "The metadata database could not be read or written. Volumes are served on; nothing can be changed.",
            "Free space on the disk of the data directory, or mend it.", "The database can be written again."),
        new(PolicyFailed, "error", true, "A policy cut no snapshot when one was due.",
            "pfcli list_policy says what stood in the way.", "The policy cuts one, is changed so that it has nothing to do, or is deleted."),
        new(HookFailed, "warning", true, "The program of a policy in front of or behind the cut failed; the snapshot has the label unknown, or users may still rest.",
            "Run the hook by hand; its folder is hooks in the data directory.", "Its hooks succeed, or the policy is deleted."),
        new(VolumeFenced, "critical", true, "A volume is not served, since its reservations cannot be read: an initiator that is fenced off could get in.",
            "Mend the metadata database; if the reservations are damaged, look who may use the volume, then pfcli clear_reservations.", "The volume is served again, or deleted."),
        new(SessionLost, "info", false, "A client's connection broke, or it was dropped for what it sent or failed to read.",
            "None for a client that was switched off. If one loses its sessions again and again, look at the network and the client's log."),
        new(ListenerFailed, "critical", false, "The kernel refused to accept more connections at an address, which is not served any more.",
            "Look at the limits of open files, then restart the daemon."),
        new(CertificateExpiring, "warning", true, "The server's certificate ends within 30 days.",
            "Make a new one and restart the daemon: clients refuse one that has ended.", "A certificate that is valid for longer is in use."),
        new(CertificateExpired, "critical", true, "The server's certificate has ended: clients refuse it.",
            "Make a new one and restart the daemon.", "A valid certificate is in use."),
        new(TaskFailed, "error", false, "A long job failed.",
            "pfcli query_task says why; begin it again when that is mended."),
        new(VolumesAdopted, "warning", false, "Volumes lay on the disk that the metadata did not know: the metadata database was lost, or the disk served another node. They are served under their names, without the limits, export options, policies and targets that they had.",
            "Set those again. A volume is promised its size anew where there was room (pfcli capacity); pfcli resize_volume -v NAME -s SIZE with --thin=false promises it to one that is thin now, with --thin takes it back from one that was thin before."),
        new(Started, "info", false, "The daemon began to serve.", "None."),
    ];

    private static readonly FrozenDictionary<string, EventKind> s_byCode = All.ToFrozenDictionary(k => k.Code, StringComparer.Ordinal);

    /// <summary>The kind of a code, or null.</summary>
    public static EventKind? Find(string code) => s_byCode.GetValueOrDefault(code);

    /// <summary>docs/events.md.</summary>
    public static string Document()
    {
        var text = new System.Text.StringBuilder(
            """
            # Events

            `pfcli list_event`, `GET /v1/events`. A *fault* is open until it is over; of one subject each fault is open once. Everything else
            happens and is noted. The daemon keeps the last thousand, also over restarts. Within ten seconds a fault is there, and within
            ten seconds of its end it is over. This page is written from the daemon's own catalogue.


            """);
        foreach (EventKind kind in All)
        {
            text.Append(System.Globalization.CultureInfo.InvariantCulture, $"## {kind.Code}\n\n{(kind.IsFault ? "Fault" : "Note")}, {kind.Severity}. {kind.Cause}\n\n");
            text.Append(System.Globalization.CultureInfo.InvariantCulture, $"**What to do:** {kind.Advice}\n\n");
            if (kind.Ends is { } ends) text.Append(System.Globalization.CultureInfo.InvariantCulture, $"**Over when:** {ends}\n\n");
        }

        return text.ToString().TrimEnd('\n') + "\n";
    }
}
