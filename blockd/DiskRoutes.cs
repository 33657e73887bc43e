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

    public DiskRoutes(Daemon daemon, AdminTasks tasks)
    {
        _daemon = daemon;
        _moves = new Moves(daemon, tasks);
        _drains = new Drains(daemon, tasks, _moves);
        _watch = new DiskWatch(daemon, _drains, daemon.Warn);
        Handlers = new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
        {
            ["POST volumes/{name}/move"] = MoveAsync,
            ["POST disks/{id}/drain"] = DrainAsync,
            ["POST disks/{id}/replace"] = ReplaceAsync,
            ["POST rebalance"] = RebalanceAsync,
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
    public void Start() => _watch.Start();

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

    private async Task ReplaceAsync(ApiCall call)
    {
        AddDisk request = await call.ReadAsync(ApiJson.Default.AddDisk);
        AdminRoutes.Check(request);
        await AnswerAsync(call, () => _drains.ReplaceAsync(IdOf(call), request));
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
