using System.Text;
using BlockServer.Protocols.Iscsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>Stages, keys and names of a login.</summary>
public sealed class IscsiLoginTests
{
    private static readonly string[] Names = ["InitiatorName=" + InitiatorName, "TargetName=" + TargetName];

    [Theory]
    [InlineData("HeaderDigest=CRC32C,None", "CRC32C")]
    [InlineData("HeaderDigest=None,CRC32C", "None")]
    [InlineData("DataDigest=X-other,CRC32C", "CRC32C")]
    [InlineData("DataDigest=X-other", "Reject")]
    [InlineData("MaxConnections=65535", "8")]
    [InlineData("MaxConnections=1", "1")]
    [InlineData("MaxConnections=0", "Reject")]
    [InlineData("InitialR2T=Yes", "Yes")]
    [InlineData("InitialR2T=No", "No")]
    [InlineData("InitialR2T=maybe", "Reject")]
    [InlineData("ImmediateData=Yes", "Yes")]
    [InlineData("ImmediateData=No", "No")]
    [InlineData("MaxBurstLength=16777215", "16777215")]
    [InlineData("MaxBurstLength=0x400", "1024")]
    [InlineData("MaxBurstLength=511", "Reject")]
    [InlineData("FirstBurstLength=16777215", "262144")]
    [InlineData("FirstBurstLength=4096", "4096")]
    [InlineData("FirstBurstLength=-1", "Reject")]
    [InlineData("DefaultTime2Wait=3600", "3600")]
    [InlineData("DefaultTime2Retain=20", "0")]
    [InlineData("MaxOutstandingR2T=16", "8")]
    [InlineData("MaxOutstandingR2T=65536", "Reject")]
    [InlineData("DataPDUInOrder=No", "Yes")]
    [InlineData("DataSequenceInOrder=No", "Yes")]
    [InlineData("ErrorRecoveryLevel=2", "0")]
    [InlineData("ErrorRecoveryLevel=3", "Reject")]
    [InlineData("TaskReporting=FastAbort,RFC3720", "RFC3720")]
    [InlineData("iSCSIProtocolLevel=2", "1")]
    [InlineData("IFMarker=Yes", "No")]
    [InlineData("OFMarkInt=2048", "Reject")]
    [InlineData("Nonsense=1", "NotUnderstood")]
    [InlineData("X-com.example.key=1", "NotUnderstood")]
    [InlineData("MaxRecvDataSegmentLength=262144", "1048576")] // declared: the answer is ours
    public void Every_key_is_answered_by_its_rule(string offer, string answer)
    {
        IscsiClient client = new IscsiWorld().Connect().Login(offer);
        Assert.Equal(answer, client.Agreed[offer[..offer.IndexOf('=')]]);
        Assert.Equal("1", client.Agreed["TargetPortalGroupTag"]);
        Assert.Equal("a disk", client.Agreed["TargetAlias"]);
    }

    [Fact]
    public void Declarations_are_not_answered_and_discovery_leaves_out_what_is_irrelevant()
    {
        IscsiClient client = new IscsiWorld().Connect().Login("InitiatorAlias=me", "X#NodeArchitecture=test");
        Assert.False(client.Agreed.ContainsKey("InitiatorAlias") || client.Agreed.ContainsKey("X#NodeArchitecture"));
        client = new IscsiWorld().Connect().Login("SessionType=Discovery", "MaxBurstLength=4096", "DefaultTime2Wait=5", "InitialR2T=No");
        Assert.Equal(("Irrelevant", "5", "Irrelevant"), (client.Agreed["MaxBurstLength"], client.Agreed["DefaultTime2Wait"], client.Agreed["InitialR2T"]));
    }

    [Fact]
    public void Both_stages_in_many_rounds_and_a_text_in_many_pieces()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect();
        byte[] text = Text([.. Names, "AuthMethod=CHAP,None"]);
        LoginResponsePdu response = client.LoginRound(IscsiStage.Security, null, text[..20], isContinued: true);
        Assert.Equal((IscsiLoginStatus.Success, false, IscsiStage.Security), (response.Status, response.IsTransit, response.Current));
        response = client.LoginRound(IscsiStage.Security, null, text[20..21], isContinued: true);
        Assert.Empty(client.Agreed);
        response = client.LoginRound(IscsiStage.Security, IscsiStage.Operational, text[21..]);
        Assert.Equal((true, IscsiStage.Operational), (response.IsTransit, response.Next));
        Assert.Equal("None", client.Agreed["AuthMethod"]);
        response = client.LoginRound(IscsiStage.Operational, null, Text("MaxBurstLength=4096"));
        Assert.False(response.IsTransit);
        response = client.LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, []);
        Assert.Equal((true, IscsiLoginStatus.Success), (response.IsTransit, response.Status));
        Assert.NotEqual(0, response.Tsih);
        Assert.Equal(client.CmdSn, response.Numbers.ExpCmdSn);
        Assert.Equal(4096, world.Target.Sessions[response.Tsih].Parameters.MaxBurstLength);
        Assert.Equal(4096, world.Target.Sessions[response.Tsih].Parameters.FirstBurstLength); // never more than the whole
        Assert.Equal(InitiatorName + ",i,0x00023d000001", world.Scsi.Nexuses[0].InitiatorPort);
    }

    [Fact]
    public void Straight_from_security_to_full_feature()
    {
        IscsiClient client = new IscsiWorld().Connect();
        LoginResponsePdu response = client.LoginRound(IscsiStage.Security, IscsiStage.FullFeature, Text(Names));
        Assert.Equal((true, IscsiLoginStatus.Success), (response.IsTransit, response.Status));
        Assert.Equal(4096, client.Read(0, 8).DataIn.Length);
    }

    public static TheoryData<string, IscsiLoginStatus> BadTexts => new()
    {
        { "TargetName=" + TargetName + "\0", IscsiLoginStatus.MissingParameter },
        { "InitiatorName=" + InitiatorName + "\0", IscsiLoginStatus.MissingParameter },
        { "InitiatorName=" + InitiatorName + "\0TargetName=iqn.2026-11.org.example:other\0", IscsiLoginStatus.NotFound },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0SessionType=Other\0", IscsiLoginStatus.SessionTypeNotSupported },
        { "InitiatorName=bob\0TargetName=" + TargetName + "\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=iqn.2026-11.org." + new string('a', 210) + "\0TargetName=" + TargetName + "\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=iqn.2026-11.org.exa mple\0TargetName=" + TargetName + "\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName, IscsiLoginStatus.InitiatorError }, // no zero byte
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0" + new string('k', 64) + "=1\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0Key=" + new string('v', 256) + "\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0Key\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0=1\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0K y=1\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0Key=a\u0001\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0MaxBurstLength=512\0MaxBurstLength=512\0", IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0InitiatorName=" + InitiatorName + "2\0TargetName=" + TargetName + "\0", IscsiLoginStatus.InitiatorError },
        { string.Concat(Enumerable.Range(0, 65).Select(i => $"Key{i}=1\0")), IscsiLoginStatus.InitiatorError },
        { "InitiatorName=" + InitiatorName + "\0TargetName=" + TargetName + "\0CHAP_A=5\0", IscsiLoginStatus.InitiatorError },
    };

    [Theory]
    [MemberData(nameof(BadTexts))]
    public void A_bad_text_is_refused_and_the_connection_closed(string text, IscsiLoginStatus status)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect();
        Assert.Equal(status, client.LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, Encoding.UTF8.GetBytes(text)).Status);
        Assert.Null(client.Receive());
        client.End();
        world.CheckClean();
    }

    [Fact]
    public void Text_that_is_not_UTF8_is_refused()
    {
        byte[] text = [.. Text(Names), (byte)'K', (byte)'=', 0xC3, 0x28, 0];
        IscsiClient client = new IscsiWorld().Connect();
        Assert.Equal(IscsiLoginStatus.InitiatorError, client.LoginRound(IscsiStage.Operational, null, text).Status);
    }

    [Theory]
    [InlineData(0, 0xC7, IscsiLoginStatus.InitiatorError)] // T and C
    [InlineData(0, 0x8B, IscsiLoginStatus.InitiatorError)] // stage 2
    [InlineData(0, 0x85, IscsiLoginStatus.AuthenticationFailure)] // operational to operational
    [InlineData(0, 0x86, IscsiLoginStatus.AuthenticationFailure)] // to stage 2
    [InlineData(1, 0x84, IscsiLoginStatus.AuthenticationFailure)] // back to security
    [InlineData(1, 0x81, IscsiLoginStatus.AuthenticationFailure)] // a request of the security stage
    public void Stages_only_go_forward(int round, int flags, IscsiLoginStatus status)
    {
        IscsiClient client = new IscsiWorld().Connect();
        if (round == 1) client.LoginRound(IscsiStage.Operational, null, Text(Names));
        Assert.Equal(status, client.LoginRound(IscsiStage.Operational, null, round == 1 ? [] : Text(Names), false, b => b[1] = (byte)flags).Status);
        Assert.Null(client.Receive());
    }

    [Fact]
    public void Headers_of_a_login_are_checked()
    {
        IscsiWorld world = new();
        Assert.Equal(IscsiLoginStatus.UnsupportedVersion, Round(b => b[3] = 1).Status);
        Assert.Equal(IscsiLoginStatus.InitiatorError, Round(b => b[0] &= 0xBF).Status); // not immediate
        foreach (int at in new[] { 8, 14, 16, 20, 24 }) // ISID, TSIH, tag, CID and CmdSN must stay
        {
            IscsiClient client = world.Connect();
            client.LoginRound(IscsiStage.Operational, null, Text(Names));
            Assert.Equal(IscsiLoginStatus.InitiatorError, client.LoginRound(IscsiStage.Operational, null, [], false, b => b[at] ^= 1).Status);
        }

        IscsiClient nop = world.Connect();
        nop.LoginRound(IscsiStage.Operational, null, Text(Names));
        nop.Send(b => new NopOutPdu(true, 0, 1, IscsiWire.NoTag, 0, 0).WriteTo(b, 0));
        Assert.Equal(IscsiLoginStatus.InvalidDuringLogin, LoginResponsePdu.Read(nop.Receive()!.Bhs).Status);

        LoginResponsePdu Round(IscsiClient.WriteBhs tweak) =>
            world.Connect().LoginRound(IscsiStage.Operational, IscsiStage.FullFeature, Text(Names), false, tweak);
    }

    [Fact]
    public void What_is_no_login_or_too_long_closes_without_an_answer()
    {
        var world = new IscsiWorld();
        foreach (byte[] first in new[] { new byte[48], "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: everything\r\n\r\n"u8.ToArray() })
        {
            IscsiClient client = world.Connect();
            client.SendRaw(first);
            Assert.Null(client.Receive());
            Assert.Equal("the first PDU is no login request", client.End());
        }

        foreach ((int at, byte value) in new[] { (4, (byte)1), (5, (byte)1), (6, (byte)0x21) }) // AHS; 64 KiB; 8,448
        {
            IscsiClient client = world.Connect();
            var bhs = new byte[48];
            new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, 0);
            bhs[at] = value;
            client.SendRaw(bhs);
            Assert.Null(client.Receive());
            Assert.Equal("a login request is too long", client.End());
        }
    }

    [Fact]
    public void A_login_is_bounded_in_rounds_text_and_time()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect();
        LoginResponsePdu response = client.LoginRound(IscsiStage.Operational, null, Text(Names));
        for (int i = 1; i < 16; i++) response = client.LoginRound(IscsiStage.Operational, null, []);
        Assert.Equal(IscsiLoginStatus.Success, response.Status);
        Assert.Equal(IscsiLoginStatus.InitiatorError, client.LoginRound(IscsiStage.Operational, null, []).Status);

        client = world.Connect();
        for (int i = 0; i < 8; i++)
            Assert.Equal(IscsiLoginStatus.Success, client.LoginRound(IscsiStage.Operational, null, new byte[8192], isContinued: true).Status);
        Assert.Equal(IscsiLoginStatus.InitiatorError, client.LoginRound(IscsiStage.Operational, null, [0], isContinued: true).Status);

        client = world.Connect();
        ulong began = world.Loop.NowNanos;
        client.LoginRound(IscsiStage.Operational, null, Text(Names));
        Assert.Null(client.Receive());
        Assert.Equal("the login took too long", client.End());
        Assert.InRange(world.Loop.NowNanos - began, 9_000_000_000UL, 11_000_000_000UL);
    }

    [Fact]
    public void A_target_can_be_elsewhere_or_forbidden_or_stopping()
    {
        var world = new IscsiWorld { MovedTo = "192.0.2.1:3260" };
        IscsiClient client = world.Connect();
        Assert.Equal(IscsiLoginStatus.MovedTemporarily, client.TryLogin().Status);
        Assert.Equal("192.0.2.1:3260", client.Agreed["TargetAddress"]);
        world = new IscsiWorld { IsForbidden = true };
        Assert.Equal(IscsiLoginStatus.AuthorizationFailure, world.Connect().TryLogin().Status);
        world = new IscsiWorld();
        world.Target.RequestStop();
        Assert.Equal(IscsiLoginStatus.ServiceUnavailable, world.Connect().TryLogin().Status);
    }

    [Fact]
    public void Names_are_well_formed_and_in_lower_case()
    {
        foreach (string good in new[] { "iqn.2001-04.com.example", "iqn.2001-04.com.Example:a.b-c_d", "eui.02004567A425678D", "naa.52004567BA64678D", "naa.62004567BA64678D0123456789ABCDEF" })
        {
            Assert.True(IscsiName.TryNormalize(good, out string normal), good);
            Assert.Equal(good.ToLowerInvariant(), normal);
        }

        foreach (string bad in new[] { "", "iqn.", "iqn.2001-4.com.x", "iqn.20a1-04.com.x", "iqn.2001-04", "eui.0200", "naa.52004567BA64678", "iqn.2001-04.com.x/y", "iqn.2001-04.com.é" })
            Assert.False(IscsiName.TryNormalize(bad, out _), bad);
    }

    [Fact]
    public void The_connection_may_be_cut_at_every_byte_of_a_login()
    {
        byte[] text = Text([.. Names, "HeaderDigest=CRC32C"]);
        var bhs = new byte[48];
        new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, text.Length);
        byte[] all = [.. bhs, .. text, .. new byte[IscsiWire.PadOf(text.Length)]];
        for (int cut = 0; cut <= all.Length; cut++)
        {
            var world = new IscsiWorld((ulong)cut + 1);
            IscsiClient client = world.Connect();
            if (cut > 0) client.SendRaw(all[..cut]);
            client.Connection.Close();
            client.End();
            world.CheckClean();
        }
    }
}
