namespace BlockServer.Tests.Simulation;

/// <summary>A snapshot as the model knows it: what it may hold, from the moment it was asked for to the one it was seen;
/// from then on exactly that.</summary>
public sealed class SnapshotModel(uint volumeId, Guid uuid, ulong sizeBytes, ulong start)
{
    /// <summary>The volume.</summary>
    public uint VolumeId => volumeId;

    /// <summary>Its identity.</summary>
    public Guid Uuid => uuid;

    /// <summary>Size of the volume when it was asked for.</summary>
    public ulong SizeBytes => sizeBytes;

    /// <summary>Model time of the call.</summary>
    public ulong Start => start;

    /// <summary>It was answered Ok, or seen.</summary>
    public bool IsSure { get; set; }

    /// <summary>Its deletion was asked for: it may be gone.</summary>
    public bool IsDeleting { get; set; }

    /// <summary>Its deletion was answered Ok, or it was seen gone, or it never was.</summary>
    public bool IsGone { get; set; }

    /// <summary>A clone was made of it: it may be kept.</summary>
    public bool WasCloned { get; set; }

    /// <summary>Blocks of it answer errors with a good excuse (<see cref="VolumeModel.Excused"/>), also when its volume has been
    /// written to there since.</summary>
    public bool IsExcused { get; set; }

    /// <summary>What its volume held when it was answered, or when the process died.</summary>
    public VolumeModel? Frozen { get; set; }

    /// <summary>What was seen in it first; null until then.</summary>
    public byte[]? Content { get; set; }

    /// <summary>Which change left each sector of <see cref="Content"/>.</summary>
    public ModelWrite?[] Seen { get; set; } = [];

    /// <summary>The rollback that this one keeps the volume from: to where; null when it is none.</summary>
    public SnapshotModel? RollBackTo { get; set; }
}
