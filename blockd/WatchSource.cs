using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>What the watched things are now, as their own resources show them to a caller. Any thread.</summary>
internal sealed class WatchSource(
    Daemon daemon, Func<IReadOnlyList<VolumeRecord>, ApiCall, Task<IReadOnlyList<VolumeInfo>>> describe, Func<ApiCall, Task<IReadOnlyList<SessionInfo>>> sessions,
    SnapshotRoutes snapshots, TargetRoutes targets, PolicyRoutes policies, TaskRoutes tasks)
{
    /// <summary>Everything of a type that the caller sees, or of that what <paramref name="notices"/> are about and still exists: key,
    /// name, object.</summary>
    public async Task<IReadOnlyList<(string Key, string Name, JsonElement Object)>> ReadAsync(
        string type, IReadOnlyCollection<WatchNotice>? notices, ApiCall call)
    {
        HashSet<string>? keys = notices?.Select(n => n.Key).ToHashSet(StringComparer.Ordinal);
        bool IsWanted(string key) => keys is null || keys.Contains(key);
        switch (type)
        {
            case WatchTypes.Volume:
                IReadOnlyList<VolumeInfo> volumes = await describe([.. daemon.Directory.List().Where(v => IsWanted(Text(v.Id)) && call.Sees(v.Name))], call);
                return Elements(volumes, v => Text(v.Id), v => v.Name, ApiJson.Default.VolumeInfo);
            case WatchTypes.Snapshot:
                return Elements(await SnapshotsAsync(notices, call), s => s.Uuid.ToString(), s => $"{s.Volume}@{s.Name}", ApiJson.Default.SnapshotEntry, IsWanted);
            case WatchTypes.Target:
                return Elements(targets.List(call).Where(t => t.Kind == "configured"), t => t.Name, t => t.Name, ApiJson.Default.TargetInfo, IsWanted);
            case WatchTypes.Policy:
                return Elements(policies.List(call), p => p.Name, p => p.Name, ApiJson.Default.PolicyInfo, IsWanted);
            case WatchTypes.Task:
                return Elements(daemon.Tasks.List().Where(t => tasks.IsSeen(call, t)), t => Text(t.Id), t => Text(t.Id), ApiJson.Default.TaskInfo, IsWanted);
            case WatchTypes.Session:
                return Elements(await sessions(call), s => s.Id, s => s.Id, ApiJson.Default.SessionInfo, IsWanted);
            case WatchTypes.Event when !call.Caller.IsConfined:
                return Elements(daemon.Events.List(), e => Text(e.Id), e => Text(e.Id), ApiJson.Default.EventInfo, IsWanted);
            default:
                return [];
        }
    }

    private async Task<IReadOnlyList<SnapshotEntry>> SnapshotsAsync(IReadOnlyCollection<WatchNotice>? notices, ApiCall call)
    {
        // Names tell the volumes to ask; who renamed one meanwhile gets all of them asked.
        HashSet<string>? names = notices?.Select(n => n.Name.Split('@')[0]).ToHashSet(StringComparer.Ordinal);
        IReadOnlyList<VolumeRecord> all = daemon.Directory.List();
        bool isAll = names is null || !names.All(n => daemon.Directory.Find(n) is not null);
        var found = new List<SnapshotEntry>();
        foreach (VolumeRecord volume in all.Where(v => (isAll || names!.Contains(v.Name)) && call.Sees(v.Name))) found.AddRange(await snapshots.ListAsync(volume, call));
        return found;
    }

    private static IReadOnlyList<(string, string, JsonElement)> Elements<T>(
        IEnumerable<T> values, Func<T, string> key, Func<T, string> name, JsonTypeInfo<T> type, Func<string, bool>? isWanted = null) =>
        [.. values.Where(v => isWanted is null || isWanted(key(v))).Select(v => (key(v), name(v), JsonSerializer.SerializeToElement(v, type)))];

    private static string Text(long number) => number.ToString(CultureInfo.InvariantCulture);
}
