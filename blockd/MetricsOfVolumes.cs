using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The part of /metrics that says what each volume does. Latencies are split at the volume's door: in what a request waits to be
/// let in (queue), and the rest (device).</summary>
internal static class MetricsOfVolumes
{
    /// <summary>Writes the families. Volumes whose disk does not answer have a size only.</summary>
    public static void Write(MetricsWriter to, IReadOnlyList<VolumeRecord> volumes, DiskFigures?[] disks, Dictionary<uint, int> sessions)
    {
        VolumeFigures[] seen = [.. disks.Where(d => d is not null).SelectMany(d => d!.Volumes).OrderBy(v => v.Volume.Name, StringComparer.Ordinal)];
        to.Family("blockd_volume_size_bytes", MetricKind.Gauge, "Size.");
        foreach (VolumeRecord volume in volumes) to.Sample(volume.SizeBytes, Named(volume), Numbered(volume));
        to.Family("blockd_volume_used_bytes", MetricKind.Gauge, "What its allocated blocks use.");
        foreach (VolumeFigures volume in seen) to.Sample(volume.UsedBytes, Named(volume.Volume), Numbered(volume.Volume));
        to.Family("blockd_volume_sessions", MetricKind.Gauge, "Clients that are attached; volumes without one are left out.");
        foreach (VolumeRecord volume in volumes)
        {
            if (sessions.TryGetValue(volume.Id, out int count)) to.Sample(count, Named(volume), Numbered(volume));
        }

        (VolumeFigures Figures, MeterFigures Meter)[] used = [.. seen.Where(v => v.Meter is not null).Select(v => (v, v.Meter!))];
        Kinds("blockd_volume_operations_total", "Requests answered.", ("read", s => s.ReadOps), ("write", s => s.WriteOps), ("flush", s => s.FlushOps), ("trim", s => s.TrimOps));
        Kinds("blockd_volume_bytes_total", "Bytes read and written.", ("read", s => s.ReadBytes), ("write", s => s.WriteBytes));
        to.Family("blockd_volume_errors_total", MetricKind.Counter, "Requests answered with an error.");
        foreach ((VolumeFigures figures, MeterFigures meter) in used) to.Sample(meter.Stats.Errors, Named(figures.Volume), Numbered(figures.Volume));
        to.Family("blockd_volume_task_set_full_total", MetricKind.Counter, "iSCSI commands turned away with TASK SET FULL.");
        foreach ((VolumeFigures figures, MeterFigures meter) in used) to.Sample(meter.TaskSetFull, Named(figures.Volume), Numbered(figures.Volume));
        Latency("blockd_volume_queue_seconds", "How long requests waited to be let in: limits of the volume and its tenant, and its share of the disk.", m =>
            [("read", m.ReadQueue, m.Stats.ReadQueueNanos), ("write", m.WriteQueue, m.Stats.WriteQueueNanos)]);
        Latency("blockd_volume_device_seconds", "How long requests took once they were let in.", m =>
            [("read", m.ReadDevice, m.Stats.ReadNanos - m.Stats.ReadQueueNanos), ("write", m.WriteDevice, m.Stats.WriteNanos - m.Stats.WriteQueueNanos)]);

        Door("blockd_volume_in_flight", MetricKind.Gauge, "Requests that were let in and are not done.", d => d.Inside);
        Door("blockd_volume_waiting", MetricKind.Gauge, "Requests that wait to be let in.", d => d.Waiting);
        Door("blockd_volume_throttled_total", MetricKind.Counter, "Requests that had to wait to be let in.", d => d.Throttled);
        Door("blockd_volume_throttled_seconds_total", MetricKind.Counter, "How long those waited together.", d => d.ThrottledNanos / 1e9);
        Door("blockd_volume_limit_iops", MetricKind.Gauge, "Operations a second that are let through; 0: no limit.", d => d.Limits.Iops);
        Door("blockd_volume_limit_bytes_per_second", MetricKind.Gauge, "Bytes a second that are let through; 0: no limit.", d => d.Limits.BytesPerSecond);

        void Kinds(string name, string help, params (string Kind, Func<VolumeStats, ulong> Value)[] kinds)
        {
            to.Family(name, MetricKind.Counter, help);
            foreach ((VolumeFigures figures, MeterFigures meter) in used)
            {
                foreach ((string kind, Func<VolumeStats, ulong> value) in kinds)
                    to.Sample(value(meter.Stats), Named(figures.Volume), Numbered(figures.Volume), ("kind", kind));
            }
        }

        void Latency(string name, string help, Func<MeterFigures, (string Kind, ulong[] Buckets, ulong Nanos)[]> histograms)
        {
            to.Family(name, MetricKind.Histogram, help);
            foreach ((VolumeFigures figures, MeterFigures meter) in used)
            {
                foreach ((string kind, ulong[] buckets, ulong nanos) in histograms(meter))
                    to.Histogram(buckets, nanos, Named(figures.Volume), Numbered(figures.Volume), ("kind", kind));
            }
        }

        void Door(string name, MetricKind kind, string help, Func<DoorFigures, double> value)
        {
            to.Family(name, kind, help);
            foreach (VolumeFigures volume in seen)
            {
                if (volume.Door is { } door) to.Sample(value(door), Named(volume.Volume), Numbered(volume.Volume));
            }
        }
    }

    private static (string Name, string Value) Named(VolumeRecord volume) => ("volume", volume.Name);

    private static (string Name, string Value) Numbered(VolumeRecord volume) => ("id", volume.Id.ToString(CultureInfo.InvariantCulture));
}
