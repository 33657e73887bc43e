using System.Diagnostics;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// What /metrics shows: the counters of the loops, added up when somebody asks. Each loop is visited once, and one that does not
/// answer in time is left out, so that a disk that hangs hides only its own figures. Thread-safe.
/// </summary>
internal sealed class Metrics(Daemon daemon)
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(3);

    /// <summary>Long jobs, newest first.</summary>
    public Func<IReadOnlyList<TaskInfo>> Tasks { get; set; } = daemon.Tasks.List;

    /// <summary>The text.</summary>
    public async Task<string> WriteAsync(bool isOpenMetrics)
    {
        IReadOnlyList<VolumeRecord> volumes = daemon.Directory.List();
        StoreHost[] hosts = [.. daemon.Stores.All];
        DiskFigures?[] disks = await Task.WhenAll(hosts.Select(h => LookAsync(h, [.. volumes.Where(v => v.StoreId == h.StoreId)])));
        var writer = new MetricsWriter(isOpenMetrics);
        WriteNode(writer);
        WriteFrontEnds(writer);
        WriteDisks(writer, hosts, disks);
        MetricsOfVolumes.Write(writer, volumes, disks, daemon.Sessions.CountByVolume());
        WriteTasks(writer);
        return writer.Finish();
    }

    /// <summary>A disk's figures and those of its volumes, in one visit to its loop; null when the loop does not answer.</summary>
    private async Task<DiskFigures?> LookAsync(StoreHost host, IReadOnlyList<VolumeRecord> volumes)
    {
        Task<DiskFigures> looking = host.Thread.InvokeAsync(() => new ValueTask<DiskFigures>(new DiskFigures(
            host.Store.State, host.Store.GetStats(), host.FreeBytesNow,
            [new("read", host.Medium.Reads), new("write", host.Medium.Writes), new("flush", host.Medium.Flushes)],
            host.Thread.Loop.Buffers.LentBytes, host.Store.CutPauses.Nanos, host.Store.CutPauses.NanosMax, [.. host.Store.CutPauses.Histogram],
            [.. volumes.Select(v => Look(host, v))])));
        return await Task.WhenAny(looking, Task.Delay(s_patience)) == looking && looking.IsCompletedSuccessfully ? await looking : null;
    }

    private VolumeFigures Look(StoreHost host, VolumeRecord volume)
    {
        ulong used = host.Store.State == StoreState.Online && host.Store.OpenVolume(volume.Id) is not null ? host.Store.UsedBytes(volume.Id) : 0;
        return new VolumeFigures(volume, used, daemon.Meters.Find(volume.Id)?.ToFigures(volume.Name), DoorOf(volume.Id));
    }

    /// <summary>Of all doors of a volume together; null when nobody has used it.</summary>
    private DoorFigures? DoorOf(uint volumeId)
    {
        DoorFigures? all = null;
        foreach (VolumeAdmission door in daemon.Volumes.Doors.Find(volumeId))
        {
            all = new DoorFigures(
                door.Limits, (all?.Inside ?? 0) + door.Inside, (all?.Waiting ?? 0) + door.Waiting,
                (all?.Throttled ?? 0) + door.Throttled, (all?.ThrottledNanos ?? 0) + door.ThrottledNanos);
        }

        return all;
    }

    private void WriteNode(MetricsWriter to)
    {
        to.Family("blockd_build_info", MetricKind.Gauge, "1; which daemon this is.");
        to.Sample(1, ("version", Program.Version), ("engine", daemon.EngineName));
        to.Family("blockd_start_time_seconds", MetricKind.Gauge, "When the daemon began, seconds since 1970.");
        to.Sample(daemon.StartedAt.ToUnixTimeMilliseconds() / 1000.0);
        using Process self = Process.GetCurrentProcess();
        to.Family("blockd_cpu_seconds_total", MetricKind.Counter, "CPU time of the daemon.");
        to.Sample(self.TotalProcessorTime.TotalSeconds);
        to.Family("blockd_resident_memory_bytes", MetricKind.Gauge, "Memory of the daemon.");
        to.Sample(self.WorkingSet64);
        to.Family("blockd_warnings", MetricKind.Gauge, "Warnings of pfcli get_pfc.");
        to.Sample(daemon.Warnings.Count);
        to.Family("blockd_faults", MetricKind.Gauge, "Faults that are open now, by severity; pfcli list_event says which.");
        foreach (string severity in EventCatalogue.Severities) to.Sample(daemon.Events.Open(severity), ("severity", severity));
    }

    private void WriteFrontEnds(MetricsWriter to)
    {
        string[] protocols = ["nbd", "iscsi"];
        Dictionary<string, int> sessions = daemon.Sessions.List().GroupBy(s => s.Protocol).ToDictionary(g => g.Key, g => g.Count());
        to.Family("blockd_sessions", MetricKind.Gauge, "Clients that are attached.");
        foreach (string protocol in protocols) to.Sample(sessions.GetValueOrDefault(protocol), ("protocol", protocol));
        to.Family("blockd_connections", MetricKind.Gauge, "Connections in any phase.");
        to.Sample(daemon.Sessions.Connections);
        FrontEndFigures[] figures = [daemon.Meters.FrontEnd(VolumeMeter.Nbd), daemon.Meters.FrontEnd(VolumeMeter.Iscsi)];
        to.Family("blockd_frontend_operations_total", MetricKind.Counter, "Requests answered by a front end.");
        for (int i = 0; i < protocols.Length; i++) to.Sample(figures[i].Operations, ("protocol", protocols[i]));
        to.Family("blockd_frontend_bytes_total", MetricKind.Counter, "Bytes read and written through a front end.");
        for (int i = 0; i < protocols.Length; i++) to.Sample(figures[i].Bytes, ("protocol", protocols[i]));
        to.Family("blockd_frontend_errors_total", MetricKind.Counter, "Requests that a front end answered with an error.");
        for (int i = 0; i < protocols.Length; i++) to.Sample(figures[i].Errors, ("protocol", protocols[i]));
    }

    private void WriteDisks(MetricsWriter to, StoreHost[] hosts, DiskFigures?[] disks)
    {
        to.Family("blockd_disk_up", MetricKind.Gauge, "1: in service and answering. 0: failed, hung, missing or refused.");
        for (int i = 0; i < hosts.Length; i++) to.Sample(disks[i]?.State == StoreState.Online ? 1 : 0, ("disk", hosts[i].Name));
        foreach (AbsentDisk absent in daemon.Disks.Absent) to.Sample(0, ("disk", absent.Name));
        to.Family("blockd_disk_in_flight", MetricKind.Gauge, "Requests that the medium has not answered yet.");
        for (int i = 0; i < hosts.Length; i++) to.Sample(hosts[i].InFlight, ("disk", hosts[i].Name));
        Each("blockd_disk_data_bytes", "What data may use in all.", s => s.Stats.BlocksTotal * Units.BlockBytes);
        Each("blockd_disk_used_bytes", "What volumes and snapshots use.", s => s.Stats.BlocksUsed * Units.BlockBytes);
        Each("blockd_disk_free_bytes", "What may still be written.", s => s.FreeBytes);
        Each("blockd_disk_kept_bytes", "What new extents keep free, the reserve included.", s => s.Stats.BlocksKept * Units.BlockBytes);
        Each("blockd_disk_promised_bytes", "What was promised to volumes and not taken yet.", s => s.Stats.BlocksPromised * Units.BlockBytes);
        Each("blockd_disk_available_bytes", "What can be promised to more volumes.", s => DiskSpace.PromisableBytes(s.Stats));
        Each("blockd_disk_bad_bytes", "What the medium did not take or keep.", s => s.Stats.BlocksBad * Units.BlockBytes);
        Each("blockd_disk_metadata_resident_bytes", "Metadata pages in memory.", s => s.Stats.MetadataResidentBytes);
        Each("blockd_disk_metadata_budget_bytes", "Memory that metadata pages may use.", s => s.Stats.MetadataBudgetBytes);
        Each("blockd_disk_metadata_table_bytes", "Memory that says where metadata pages are.", s => s.Stats.MetadataTableBytes);
        Each("blockd_disk_metadata_slots", "Metadata pages that the disk has room for.", s => s.Stats.SlotsTotal);
        Each("blockd_disk_metadata_slots_used", "Metadata pages in use.", s => s.Stats.SlotsHeld);
        Each("blockd_disk_metadata_slots_returning", "Metadata pages of what is gone, which the next checkpoints give back.", s => s.Stats.SlotsReturning);
        Each("blockd_disk_metadata_slots_promised", "Metadata pages that were promised to volumes and not taken yet.", s => s.Stats.SlotsPromised);
        Each("blockd_disk_metadata_loads_total", "Metadata pages read because they were not in memory.", s => s.Stats.MetadataLoads, true);
        Each("blockd_disk_ring_ratio", "Part of the redo ring that is in use, 0 to 1.", s => s.Stats.RingOccupancy);
        Each("blockd_disk_checkpoints_total", "Checkpoint cycles.", s => s.Stats.Checkpoints, true);
        Each("blockd_disk_checkpoint_bytes_total", "Bytes of metadata pages that checkpoints wrote.", s => s.Stats.CheckpointBytes, true);
        Each("blockd_disk_checkpoint_age_seconds", "Since the last checkpoint while something waits for the next; 0: nothing does.", s => s.Stats.CheckpointAgeNanos / 1e9);
        Each("blockd_disk_checksum_errors_total", "Blocks whose checksum did not match.", s => s.Stats.ChecksumErrors, true);
        Each("blockd_disk_io_errors_total", "Errors of the medium.", s => s.Stats.IoErrors, true);
        Each("blockd_disk_scattered_extents", "Extents that are to be laid out anew.", s => s.Stats.ExtentsScattered);
        Each("blockd_loop_lent_bytes", "I/O memory in use on the disk's loop.", s => s.LentBytes);
        Kinds("blockd_disk_operations_total", "Requests that the medium answered.", c => c.Operations);
        Kinds("blockd_disk_bytes_total", "Bytes read from and written to the medium.", c => c.Bytes);
        Kinds("blockd_disk_errors_total", "Requests that the medium failed.", c => c.Errors);
        to.Family("blockd_disk_latency_seconds", MetricKind.Histogram, "How long the medium took.");
        for (int i = 0; i < hosts.Length; i++)
        {
            foreach ((string kind, _, _, _, ulong nanos, ulong[] histogram) in disks[i]?.Kinds ?? [])
                to.Histogram(histogram, nanos, ("disk", hosts[i].Name), ("kind", kind));
        }

        to.Family("blockd_disk_cut_pause_seconds", MetricKind.Histogram, "How long cuts of snapshots held changes back.");
        for (int i = 0; i < hosts.Length; i++)
        {
            if (disks[i] is { } figures) to.Histogram(figures.CutPauses, figures.CutNanos, ("disk", hosts[i].Name));
        }

        Each("blockd_disk_cut_pause_max_seconds", "The longest of them since the start.", s => s.CutNanosMax / 1e9);

        void Each(string name, string help, Func<DiskFigures, double> value, bool isCounter = false)
        {
            to.Family(name, isCounter ? MetricKind.Counter : MetricKind.Gauge, help);
            for (int i = 0; i < hosts.Length; i++)
            {
                if (disks[i] is { } figures) to.Sample(value(figures), ("disk", hosts[i].Name));
            }
        }

        void Kinds(string name, string help, Func<DiskKind, double> value)
        {
            to.Family(name, MetricKind.Counter, help);
            for (int i = 0; i < hosts.Length; i++)
            {
                foreach (DiskKind kind in disks[i]?.Kinds ?? []) to.Sample(value(kind), ("disk", hosts[i].Name), ("kind", kind.Kind));
            }
        }
    }

    private void WriteTasks(MetricsWriter to)
    {
        IReadOnlyList<TaskInfo> tasks = Tasks();
        to.Family("blockd_tasks", MetricKind.Gauge, "Long jobs that are remembered, by state.");
        foreach (IGrouping<string, TaskInfo> state in tasks.GroupBy(t => t.State).OrderBy(g => g.Key, StringComparer.Ordinal))
            to.Sample(state.Count(), ("state", state.Key));
        to.Family("blockd_scrub_progress_ratio", MetricKind.Gauge, "How far the newest scrub of a volume or disk is, 0 to 1.");
        foreach (IGrouping<string, TaskInfo> scrubs in Scrubs(tasks)) to.Sample(scrubs.First().Progress, ("target", scrubs.Key));
        to.Family("blockd_scrub_failed", MetricKind.Gauge, "1: the newest scrub of a volume or disk has found bad blocks or could not go on.");
        foreach (IGrouping<string, TaskInfo> scrubs in Scrubs(tasks)) to.Sample(scrubs.First().State == "failed" ? 1 : 0, ("target", scrubs.Key));

        static IEnumerable<IGrouping<string, TaskInfo>> Scrubs(IReadOnlyList<TaskInfo> tasks) => tasks
            .Where(t => t.Kind.Contains("scrub", StringComparison.Ordinal)).GroupBy(t => t.Target).OrderBy(g => g.Key, StringComparer.Ordinal);
    }
}

/// <summary>Requests of one kind to a medium, copied on its loop.</summary>
internal sealed record DiskKind(string Kind, ulong Operations, ulong Bytes, ulong Errors, ulong Nanos, ulong[] Histogram)
{
    public DiskKind(string kind, RequestCounters counters)
        : this(kind, counters.Operations, counters.Bytes, counters.Errors, counters.Nanos, [.. counters.Histogram])
    {
    }
}

/// <summary>A disk in service and its volumes, copied on its loop.</summary>
internal sealed record DiskFigures(
    StoreState State, StoreStats Stats, ulong FreeBytes, DiskKind[] Kinds, long LentBytes,
    ulong CutNanos, ulong CutNanosMax, ulong[] CutPauses, VolumeFigures[] Volumes);

/// <summary>A volume's door, copied on its loop.</summary>
internal sealed record DoorFigures(QosLimits Limits, int Inside, int Waiting, ulong Throttled, ulong ThrottledNanos);

/// <summary>A volume, copied on its loop. Meter and door are null until somebody has attached it.</summary>
internal sealed record VolumeFigures(VolumeRecord Volume, ulong UsedBytes, MeterFigures? Meter, DoorFigures? Door);
