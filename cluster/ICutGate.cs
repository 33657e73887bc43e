namespace BlockServer.Cluster;

/// <summary>Holds changes of volumes back while they are cut on several stores.</summary>
public interface ICutGate
{
    /// <summary>From the answer on no change of these volumes is under way, and none begins until <see cref="ICutHold.ReleaseAsync"/>. Null
    /// when they do not come to rest within the longest pause: then nothing is held.</summary>
    Task<ICutHold?> HoldAsync(IReadOnlyList<VolumeRecord> volumes);
}

/// <summary>Changes that are held back.</summary>
public interface ICutHold
{
    /// <summary>The longest pause is over: changes go on, and what is not cut by now is not part of one moment.</summary>
    Task Expired { get; }

    /// <summary>Lets changes go on. True when none had gone on before.</summary>
    Task<bool> ReleaseAsync();
}
