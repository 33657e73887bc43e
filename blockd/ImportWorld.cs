using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>What imports and populations need of the daemon around them. Thread-safe.</summary>
internal interface IImportWorld
{
    /// <summary>A store in service, or null.</summary>
    IMoveSide? FindStore(Guid storeId);

    /// <summary>Clients that have the volume open.</summary>
    int AttachedTo(uint volumeId);

    /// <summary>From now on nobody may attach the volume.</summary>
    void Close(uint volumeId);

    /// <summary>Ends <see cref="Close"/>.</summary>
    void Reopen(uint volumeId);

    /// <summary>The volume is gone.</summary>
    void Forget(uint volumeId);

    /// <summary>Units of volumes that may not be attached any more are taken away, the others given back.</summary>
    Task RenewTargetsAsync();

    /// <summary>The volume has become an image; ends when every front end refuses changes of it.</summary>
    Task SealAsync(VolumeRecord image);

    /// <summary>Adds to what the node warns of.</summary>
    void Warn(string warning);
}

/// <summary>Dice and calendar of imports.</summary>
internal sealed record ImportSeams(IRandom Random, IWallClock Clock);

/// <summary>Rules of imports and populations that a test breaks, to see that it is noticed.</summary>
[Flags]
internal enum BrokenImports
{
    None = 0,

    /// <summary>The volume may be attached before the last of the stream is durable and cut.</summary>
    OpenEarly = 1,

    /// <summary>A place is kept from which the import goes on before what is in front of it is durable.</summary>
    KeepEarly = 2,

    /// <summary>What a broken stream has left on its base is not taken back.</summary>
    LeavePart = 4,

    /// <summary>Those who are attached are not looked for.</summary>
    IgnoreClients = 8,

    /// <summary>The parts that broken streams have left are kept for ever.</summary>
    KeepParts = 16,
}

/// <summary>What an import reads when it was handed over.</summary>
/// <param name="File">Owned by whoever runs the import.</param>
/// <param name="IsImage">A disk image, else a stream of which the header is not read again.</param>
internal sealed record HandedImport(Microsoft.Win32.SafeHandles.SafeFileHandle File, bool IsImage);

/// <summary>How an import works.</summary>
internal sealed record ImportLimits
{
    /// <summary>Bytes that are written in one visit to the loop.</summary>
    public int BatchBytes { get; init; } = 2 << 20;

    /// <summary>Content between two points from which the import can go on.</summary>
    public ulong KeepEveryBytes { get; init; } = 64 * Units.MiB;

    /// <summary>So long a stream may give nothing.</summary>
    public TimeSpan Patience { get; init; } = TimeSpan.FromMinutes(5);

    /// <summary>Tests only.</summary>
    public BrokenImports Broken { get; init; }
}

/// <summary>The daemon, as imports see it.</summary>
internal sealed class DaemonImportWorld(
    StoreSet stores, SharedVolumes volumes, Sessions sessions, Func<Task> renewTargets, Action<string> warn) : IImportWorld
{
    public IMoveSide? FindStore(Guid storeId) => stores.Find(storeId);

    public int AttachedTo(uint volumeId) => sessions.CountOf(volumeId);

    public void Close(uint volumeId) => volumes.Close(volumeId);

    public void Reopen(uint volumeId) => volumes.Reopen(volumeId);

    public void Forget(uint volumeId) => volumes.Forget(volumeId);

    public Task RenewTargetsAsync() => renewTargets();

    public Task SealAsync(VolumeRecord image) => volumes.SealAsync(image);

    public void Warn(string warning) => warn(warning);
}
