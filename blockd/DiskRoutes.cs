using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>What the admin API does with volumes on their way between disks.</summary>
internal sealed class DiskRoutes
{
    private readonly Daemon _daemon;
    private readonly Moves _moves;
    private readonly Drains _drains;
    private readonly DiskWatch _watch;
    private readonly Scrubs _scrubs;

    public DiskRoutes(Daemon daemon)
    {
        _daemon = daemon;
        _moves = new Moves(daemon);
        _drains = new Drains(daemon, _moves);
        _watch = new DiskWatch(daemon, _drains, daemon.Warn);
        _scrubs = new Scrubs(daemon, Io.SystemClock.Instance);
        Handlers = new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
        {
            ["POST volumes/{name}/move"] = MoveAsync,
            ["POST disks/{id}/drain"] = DrainAsync,
            ["DELETE disks/{id}/drain"] = UndoDrainAsync,
            ["POST disks/{id}/replace"] = ReplaceAsync,
            ["POST rebalance"] = RebalanceAsync,
            ["POST disks/{id}/scrub"] = ScrubAsync,
            ["GET bad-blocks"] = BadBlocksAsync,
        };
    }

    /// <summary>By method and template.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers { get; }

    /// <summary>Goes on with what an earlier run, or a disk that was away, has left half.</summary>
    public async Task ResumeAsync()
    {
        await _moves.ResumeAsync();
        _drains.Resume();
    }

    /// <summary>Begins to look after the disks.</summary>
    public void Start()
    {
        _watch.Start();
        _scrubs.Start();
    }

    /// <summary>Takes down what a scrub of a volume has found.</summary>
    public Task NoteAsync(VolumeRecord volume, Core.ScrubReport report) => _scrubs.NoteAsync(volume.StoreId, volume.Id, report.Bad);

    private async Task MoveAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(_daemon, call);
        MoveVolume request = await call.ReadAsync(ApiJson.Default.MoveVolume);
        await call.AnswerAsync(await _moves.BeginAsync(volume, request.StoreId), ApiJson.Default.TaskInfo, 202);
    }

    private async Task DrainAsync(ApiCall call)
    {
        await call.ReadAsync(ApiJson.Default.DrainDisk);
        await AnswerAsync(call, () => _drains.BeginAsync(IdOf(call)));
    }

    private async Task UndoDrainAsync(ApiCall call)
    {
        try
        {
            await _drains.UndoAsync(IdOf(call), call.Aborted);
            await call.AnswerNothingAsync();
        }
        catch (DiskException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message, e.Field);
        }
    }

    private async Task ReplaceAsync(ApiCall call)
    {
        AddDisk request = await call.ReadAsync(ApiJson.Default.AddDisk);
        AdminRoutes.Check(request);
        await AnswerAsync(call, () => _drains.ReplaceAsync(IdOf(call), request));
    }

    private async Task ScrubAsync(ApiCall call)
    {
        ScrubRequest request = await call.ReadAsync(ApiJson.Default.ScrubRequest);
        StoreHost host = _daemon.Stores.Find(IdOf(call)) ?? throw new ApiException(404, "no-such-disk", $"there is no disk '{call.Parts[1]}' in service");
        await call.AnswerAsync(_scrubs.Begin(host, request.BytesPerSecond), ApiJson.Default.TaskInfo, 202);
    }

    private Task BadBlocksAsync(ApiCall call)
    {
        Dictionary<uint, string> names = _daemon.Directory.List().ToDictionary(v => v.Id, v => v.Name);
        return call.AnswerAsync(
            new BadBlockList([.. _daemon.ScrubRecords.Bad().Where(b => names.ContainsKey(b.VolumeId)).Select(b => new BadBlockInfo(
                names[b.VolumeId], b.OffsetBytes, b.Reason == Core.IoStatus.Corrupt ? "corrupt" : "io-error", b.Snapshot, b.FoundAt))]),
            ApiJson.Default.BadBlockList);
    }

    private async Task RebalanceAsync(ApiCall call)
    {
        await call.ReadAsync(ApiJson.Default.Rebalance);
        await call.AnswerAsync(_drains.Rebalance(), ApiJson.Default.TaskInfo, 202);
    }

    private static async Task AnswerAsync(ApiCall call, Func<Task<TaskInfo>> begin)
    {
        try
        {
            await call.AnswerAsync(await begin(), ApiJson.Default.TaskInfo, 202);
        }
        catch (DiskException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message, e.Field);
        }
    }

    private static Guid IdOf(ApiCall call) => Guid.TryParse(call.Parts[1], out Guid id) ? id
        : throw new ApiException(404, "no-such-disk", $"there is no disk '{call.Parts[1]}'");
}
